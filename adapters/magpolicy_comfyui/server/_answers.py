"""What a panel is shown: the schedule of a node's settings, and what decides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import magpolicy
from magpolicy.adapter import named, names_a_file
from magpolicy_comfyui import _model_presets
from magpolicy_comfyui._advice import advice
from magpolicy_comfyui._identity import files
from magpolicy_comfyui._settings import CAUTIOUS
from magpolicy_comfyui._sources import SampledModel
from magpolicy_comfyui.nodes import _inputs, _preset_menu
from magpolicy_comfyui.nodes._checked import check
from magpolicy_comfyui.server import _preview

# The nodes' names for settings, and the library's.
SETTINGS = {
    "magcache_thresh": "threshold",
    "retention_ratio": "retention",
    "magcache_K": "max_skips",
    "start_step": "start_step",
    "end_step": "end_step",
}
_LEFT_OUT = {"magcache_thresh": -1.0, "retention_ratio": -1.0, "magcache_K": -1, "start_step": 0, "end_step": -1}
SPEED_UP = "MagPolicySpeedUp"
STEPS = 20
"""Of a run, where neither the sampler nor a preset says it."""
_KNOWN = (*SETTINGS, "model_type", "settings", "semantics", "offload", "speedup", "forecast")


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer about one node; the question and it are as :func:`magpolicy_comfyui.server._routes.preview` says.

    Raises:
        MagPolicyError: a setting is unknown or out of range.
    """
    seen = SampledModel.of(question.get("seen"))
    inputs = {name: value for name, value in (question.get("inputs") or {}).items() if value is not None}
    sampler = {name: value for name, value in (question.get("sampler") or {}).items() if value is not None}
    check(sampler, _preview.INPUTS)
    if question.get("node") == SPEED_UP:
        check(inputs, _inputs.speed_inputs())
        return _of_speed_up(inputs, sampler, seen)
    named_by = {"model_type": ("STRING", {"default": _preset_menu.AUTO})}  # an unknown name has a message of its own
    check(inputs, _inputs.rule_inputs() | _inputs.window_inputs() | _inputs.more_inputs() | named_by)
    return _of_magcache(inputs, sampler, seen)


def _of_speed_up(inputs: Mapping[str, Any], sampler: Mapping[str, Any], seen: Any) -> dict[str, Any]:
    """Whatever the model, there is a plan. Once it was sampled, that is the next run's."""
    given = {name: inputs[name] for name in ("custom_speedup", "learn") if name in inputs}
    settings = _inputs.speed_settings_of(inputs.get("speedup", _inputs.BALANCED), **given)
    notes = [] if "speedup" in inputs else [f"{_inputs.BALANCED}: the speedup comes over a link, and is known when it runs"]
    return _plan(settings, sampler, notes, seen)


def _plan(settings: Any, sampler: Mapping[str, Any], notes: list[str], seen: Any) -> dict[str, Any]:
    """The plan for a model that is not named in the node."""
    if seen is None:
        notes = [*notes, "what is known of the model is seen when it is sampled, and may change the plan"]
    return _shown(settings, None if seen is None else seen.for_plan(), sampler, notes, seen)


def _of_magcache(inputs: Mapping[str, Any], sampler: Mapping[str, Any], seen: Any) -> dict[str, Any]:
    name = str(inputs.get("model_type", _preset_menu.AUTO))
    if names_a_file(name) and name not in files():
        raise magpolicy.PresetError(
            f"model_type={name!r} is not one of the node's list; files belong into {_preset_menu.folder()}"
        )
    linked = [name for name in SETTINGS if name not in inputs]
    shown = {name: _LEFT_OUT[name] for name in linked} | {"model_type": name} | dict(inputs)
    settings = _inputs.settings_of(**{name: value for name, value in shown.items() if name in _KNOWN})
    source = settings.source
    if source is not None:
        return _shown(settings, source, sampler, _the_presets(settings, source), None)
    if settings.speedup is not None:
        return _plan(settings, sampler, [], seen)
    if seen is None:
        return {"headline": "auto: chosen when the model is sampled", "schedule": None, "notes": []}
    steps = sampler.get("steps")
    source = seen.for_rule()
    if source is None:
        return _shown(settings.without_table(), None, sampler, [_model_presets.unknown()], seen)
    if isinstance(source, str):
        source = named(_model_presets.longer(source, steps if isinstance(steps, int) else 0)).with_settings(CAUTIOUS)
    return _shown(settings, source, sampler, _the_presets(settings, source), seen)


def _the_presets(settings: Any, source: Any) -> list[str]:
    """A note that says the settings which are not set in the node."""
    if settings.speedup is not None:
        return []
    names = {library: node for node, library in SETTINGS.items()}
    rule = settings.rule_on(source)
    own = [f"{names[name]} {rule[name]:g}" for name in rule if getattr(settings, name) is None]
    return [f"the preset's: {', '.join(own)}"] if own else []


def _shown(settings: Any, source: Any, values: Mapping[str, Any], notes: list[str], seen: Any) -> dict[str, Any]:
    """The schedule of a sampling, and what decides it."""
    preset = source[0] if isinstance(source, tuple) else source
    usual = getattr(preset, "steps", None) or STEPS
    if seen is not None:
        values = {"shift": seen.shift, **values}
    sampler = _preview.Sampler.of(values, usual)
    flux = getattr(preset, "family", None) == "flux" if seen is None else seen.flux
    found = _preview.preview(settings, source, sampler, flux=flux, seen=seen)
    schedule, remark = found.schedule, found.remark
    if found.config.reads == "noise" and sampler.shift is None:
        remark = remark or "the model's own shift is known when it runs; a step may differ"
    if values.get("steps") is None:
        notes = [*notes, f"{sampler.steps} steps" + (f", as the preset {preset.name}" if preset is not None else "")]
    return {
        "headline": f"{schedule.computed} of {schedule.steps} computed · {schedule.speedup:.2f}x",
        "strip": schedule.strip,
        "text": str(schedule),
        "schedule": schedule.to_dict(),
        "preset": None if preset is None else preset.name,
        "decides": found.config.source,
        "advice": advice(settings, found.config),
        "notes": [*notes, *filter(None, (remark, found.differs))],
    }
