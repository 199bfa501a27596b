"""The nodes' inputs, in the origin's names and order, and the settings that they mean.

Nodes named as in ComfyUI-MagCache take its inputs in its order, so that its workflows load; new inputs come after.
"""

from __future__ import annotations

from typing import Any, Literal

import magpolicy
from magpolicy import ArgumentError, Preset
from magpolicy.adapter import SPEEDS
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui.nodes import _preset_menu
from magpolicy_comfyui.nodes._checked import check

OWN = "magpolicy"
MANUAL, PRESET = "as set here", "the preset's"
PUBLISHED = -1
"""In the place of a threshold, a retention or a K: the preset's own. Saved workflows have no such value."""
BALANCED, CUSTOM = "balanced", "custom"
LEARN: dict[str, bool | Literal["first"]] = {"as it goes": True, "first run in full": "first", "off": False}
Inputs = dict[str, dict[str, Any]]


def speed_inputs() -> dict[str, Any]:
    """How fast, and whether to learn from runs."""
    named = ", ".join(f"{name}: {speed:g}x" for name, speed in SPEEDS.items())
    return {
        "speedup": (
            [*SPEEDS, CUSTOM],
            {"default": BALANCED, "tooltip": f"How much faster the model is to run. {named}, {CUSTOM}: the number below."},
        ),
        "custom_speedup": (
            "FLOAT",
            {"default": 2.0, "min": 1.0, "max": 20.0, "step": 0.1, "tooltip": f"The speedup, if {CUSTOM} is chosen above."},
        ),
        "learn": (
            list(LEARN),
            {"default": "as it goes",
             "tooltip": "Runs are measured, and later runs of the model are planned from what was measured. A run in full "
                        "teaches most. off: nothing is measured or kept."},
        ),
    }  # fmt: skip


def speed_settings_of(
    speedup: str | float, custom_speedup: float = 2.0, learn: str = "as it goes", unique_id: str | None = None
) -> Settings:
    """The settings that the inputs of the node Speed up mean.

    Raises:
        ArgumentError: a setting is unknown or out of range; the message names it.
    """
    check({"learn": learn}, {"learn": ("STRING", {"default": "as it goes"})})
    check({"custom_speedup": custom_speedup}, speed_inputs())
    if learn not in LEARN:
        raise ArgumentError(f"learn={learn!r} must be one of {', '.join(map(repr, LEARN))}; try 'as it goes'")
    chosen = custom_speedup if speedup == CUSTOM else speedup
    made = Settings(source=None, speedup=chosen, learn=LEARN[learn], node=unique_id)
    made.check()
    return made


def rule_inputs() -> dict[str, Any]:
    """The settings of the rule, in the origin's order."""
    return {
        "model_type": (
            _preset_menu.choices(),
            {"default": _preset_menu.AUTO, "tooltip": "Which model this is: its calibration decides. auto reads the model."},
        ),
        "magcache_thresh": (
            "FLOAT",
            {"default": PUBLISHED, "min": PUBLISHED, "max": 10.0, "step": 0.001, "round": 0.001,
             "tooltip": "Bound on the accumulated error. More skips, less like the full run. -1: the preset's own."},
        ),
        "retention_ratio": (
            "FLOAT",
            {"default": PUBLISHED, "min": PUBLISHED, "max": 1.0, "step": 0.01,
             "tooltip": "Leading share of the run that always computes. -1: the preset's own."},
        ),
        "magcache_K": (
            "INT",
            {"default": PUBLISHED, "min": PUBLISHED, "max": 100,
             "tooltip": "How many steps in a row may be skipped. -1: the preset's own."},
        ),
    }  # fmt: skip


def window_inputs() -> dict[str, Any]:
    """Which steps may be skipped at all; the origin's last two."""
    return {
        "start_step": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "First step that may be skipped."}),
        "end_step": (
            "INT",
            {"default": -1, "min": -10000, "max": 10000, "tooltip": "Last one; negative counts from the end."},
        ),
    }  # fmt: skip


def more_inputs() -> dict[str, Any]:
    """The new inputs, which old workflows do not have."""
    return {
        "settings": (
            [MANUAL, PRESET],
            {"default": MANUAL, "tooltip": "Take threshold, K and retention from here, or those published with the preset."},
        ),
        "semantics": (
            list(magpolicy.semantics_names()),
            {"default": OWN, "tooltip": "magpolicy's own rule, or that of a published implementation, decision for decision."},
        ),
        "offload": (["device", "cpu"], {"default": "device", "tooltip": "Where residuals wait between their uses."}),
        "speedup": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
             "tooltip": "Plan for a speedup, e.g. 2 for half the evaluations; threshold, retention and K have no say then. "
                        "0: by the threshold."},
        ),
        "forecast": (
            ["auto", "hold", "linear", "calibrated", "second-order"],
            {"default": "auto", "tooltip": "What a skipped step gets: the last residual, or where the last ones are heading."},
        ),
    }  # fmt: skip


def settings_of(
    model_type: str,
    magcache_thresh: float,
    retention_ratio: float,
    magcache_K: int,
    start_step: int = 0,
    end_step: int = -1,
    settings: str = MANUAL,
    semantics: str = OWN,
    offload: str = "device",
    speedup: float = 0.0,
    forecast: str = "auto",
    unique_id: str | None = None,
) -> Settings:
    """The settings that a node's inputs mean.

    Raises:
        PresetError: ``model_type`` names no preset.
        ArgumentError: a setting is of another kind or out of range; the message names it.
    """
    given = dict(locals())
    named_otherwise: dict[str, Any] = {
        name: ("STRING", {}) for name in ("model_type", "semantics", "forecast")
    }  # these have own messages
    check(given, rule_inputs() | window_inputs() | more_inputs() | named_otherwise)
    rule = {"threshold": magcache_thresh, "max_skips": magcache_K, "retention": retention_ratio}
    set_here: dict[str, Any] = {name: None if _is_published(value) else value for name, value in rule.items()}
    published = settings == PRESET or None in set_here.values()
    source = _preset_menu.find(model_type, published=published and not speedup)
    if settings == PRESET:
        known = _recommended(source)
        set_here = {k: None if source is None else v if known[k] is None else known[k] for k, v in set_here.items()}
    made = Settings(
        source=source,
        **set_here,
        start_step=start_step,
        end_step=end_step,
        semantics=None if semantics == OWN else semantics,
        offload=None if offload == "device" else offload,
        speedup=speedup or None,
        forecast=None if forecast == "auto" else forecast,
        node=unique_id,
        follow_steps=model_type == "hunyuan_video1.5",
    )
    made.check()
    return made


def _is_published(value: Any) -> bool:
    return isinstance(value, int | float) and PUBLISHED <= value < 0


def _recommended(source: Any) -> dict[str, Any]:
    """The settings that come with a preset."""
    if not isinstance(source, Preset):
        return {}
    return {"threshold": source.threshold, "max_skips": source.max_skips, "retention": source.retention}
