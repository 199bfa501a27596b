"""The nodes: what ComfyUI calls, and the names it knows them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import magpolicy
from magpolicy.adapter import ModelIdentity
from magpolicy_comfyui import _model_presets
from magpolicy_comfyui._compile import compile_model
from magpolicy_comfyui._identity import identity_of
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._runs import Attachment, attach, attached
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui._sources import SampledModel
from magpolicy_comfyui.nodes import _preset_menu, _report
from magpolicy_comfyui.nodes._inputs import (
    Inputs,
    more_inputs,
    rule_inputs,
    settings_of,
    speed_inputs,
    speed_settings_of,
    window_inputs,
)
from magpolicy_comfyui.nodes._picture import picture

CATEGORY = "MagCache"


class MagPolicySpeedUp:
    """Makes any model faster: plans which steps compute, gives the others a forecast, and learns from the runs you make."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("magcache", "cache", "faster", "speedup", "skip steps")
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        speed = speed_inputs()
        return {
            "required": {"model": ("MODEL",), "speedup": speed.pop("speedup")},
            "optional": speed,  # of an API's prompt too: one thing is to be chosen
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def apply(self, model: Any, **inputs: Any) -> tuple[Any]:
        clone = model.clone()
        attach(clone, Attachment(speed_settings_of(**inputs), _report.finished))
        return (clone,)


class MagCache:
    """Skips the blocks of a model at steps where little changes."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("magpolicy", "cache", "faster", "skip steps")
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"model": ("MODEL",), **rule_inputs()},
            "optional": {**window_inputs(), **more_inputs()},  # they come last, so that widgets stay where files have them
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, model_type: str | None = None, **_: Any) -> float:
        return _preset_menu.changed(model_type)

    def apply(self, model: Any, **inputs: Any) -> tuple[Any]:
        settings = settings_of(**inputs)
        clone = model.clone()
        attach(clone, Attachment(settings, _report.finished))
        return (clone,)


class MagCacheCalibration:
    """Computes every step, and writes the calibration as a preset that model_type then offers."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("magpolicy", "measure", "calibrate")
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": ("MODEL",),
                "model_type": ([*_preset_menu.choices(), *_preset_menu.CALIBRATIONS], {"default": _preset_menu.AUTO}),
            },
            "optional": {
                "name": ("STRING", {"default": "", "tooltip": "Of the preset; empty: the model's class and the steps."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def apply(self, model: Any, model_type: str, name: str = "", unique_id: str | None = None) -> tuple[Any]:
        model_type = _preset_menu.CALIBRATIONS.get(model_type, model_type)
        clone = model.clone()
        settings = Settings(source=_preset_menu.find(model_type), calibrate=True, name=name, node=unique_id)
        kind = type(model.model).__name__ if model_type == _preset_menu.AUTO else _preset_menu.stem(model_type)

        def finished(attachment: Attachment, run_report: RunReport) -> None:
            written = _write(run_report, settings, kind)
            run_report.notes.append(f"written: {written}" if written else f"nothing was measured: {run_report.problem}")
            _report.finished(attachment, run_report)

        attach(clone, Attachment(settings, finished))
        return (clone,)


def _write(run_report: RunReport, settings: Settings, kind: str) -> Path | None:
    measured = run_report.measured
    if measured is None:
        return None
    return _preset_menu.save(settings.name.strip() or _name(run_report, measured, kind), measured)


def _name(run_report: RunReport, measured: magpolicy.Calibration, kind: str) -> str:
    """The name of a calibration that nobody named: another one for each model, of two experts too, and each of its stages."""
    span, count = run_report.span, measured.steps
    steps = f"steps {span.first + 1}-{span.first + count} of {span.steps}" if span.partial else f"{count}steps"
    return f"{kind}-{ModelIdentity.of(measured).digest(measured.streams)[:6]}-{steps}"


class CompileModel:
    """Compiles the blocks of a model with torch.compile, by ComfyUI's own wrapper; before or after MagCache."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("magpolicy", "torch.compile")
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        modes = ["default", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead"]
        return {
            "required": {
                "model": ("MODEL",),
                "mode": (modes, {"default": "default"}),
                "backend": (["inductor", "cudagraphs", "eager", "aot_eager"], {"default": "inductor"}),
                "fullgraph": ("BOOLEAN", {"default": False}),
                "dynamic": ("BOOLEAN", {"default": False}),
            }
        }

    def apply(self, model: Any, mode: str, backend: str, fullgraph: bool, dynamic: bool) -> tuple[Any]:
        return (compile_model(model.clone(), mode=mode, backend=backend, fullgraph=fullgraph, dynamic=dynamic),)


class MagPolicyPreview:
    """The schedule that settings give, before anything is sampled: a picture and a text."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("schedule", "skip steps")
    FUNCTION = "preview"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "text")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        steps = ("INT", {"default": 20, "min": 1, "max": 1000, "tooltip": "Steps of the sampler."})
        return {
            "required": rule_inputs(),
            "optional": {
                **window_inputs(),
                "steps": steps,
                **more_inputs(),
                "model": ("MODEL", {"tooltip": "For model_type auto."}),
            },
        }

    def preview(self, steps: int = 20, model: Any = None, **inputs: Any) -> dict[str, Any]:
        settings = settings_of(**inputs)
        source, notes = settings.source, []
        if source is None:
            if model is None:
                raise magpolicy.ArgumentError("model_type=auto needs the model; connect it, or pick a model_type")
            rows = _model_presets.rows_for(model.model)
            known = SampledModel(_model_presets.longer(rows[-1].preset, steps) if rows else None, identity_of(model))
            source = known.for_rule() if settings.needs_table else known.for_plan()
            if source is None and settings.needs_table:
                settings, notes = settings.without_table(), [_model_presets.unknown(type(model.model).__name__)]
        schedule = settings.place(source, steps).simulate()
        reasons = ", ".join(f"{reason} {n}" for reason, n in schedule.reasons().items())
        text = "\n".join([str(schedule), reasons, *notes])
        return {"ui": {"text": (text,)}, "result": (picture(schedule), text)}


class MagPolicyReport:
    """What the sampling that made a latent computed and skipped, why, and how much faster it was: a picture and a text."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    SEARCH_ALIASES = ("schedule", "skipped steps", "speedup")
    FUNCTION = "report"
    OUTPUT_NODE = True
    RETURN_TYPES = ("LATENT", "IMAGE", "STRING")
    RETURN_NAMES = ("latent", "image", "text")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        latent = ("LATENT", {"tooltip": "The sampler's result: the report is made after it."})
        return {"required": {"latent": latent, "model": ("MODEL", {"tooltip": "The model that went into the sampler."})}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")  # a sampling is not an input, but it is what is reported

    def report(self, latent: Any, model: Any) -> dict[str, Any]:
        attachment = attached(model)
        # One model may be sampled several times in a prompt; of what has gone through other nodes since, the last one is told.
        samples = latent.get("samples") if isinstance(latent, dict) else None  # a script may only want the model's last run
        run_report = None if attachment is None else attachment.made.report_of(samples) or attachment.run_report
        if run_report is None:
            why = "this model has no MagCache node before it" if attachment is None else "no sampling was run with this model"
            text, image = f"nothing to report: {why}", picture(magpolicy.Schedule.from_mask([True]))
        else:
            text, image = run_report.text, picture(run_report.schedule)
        return {"ui": {"text": (text,)}, "result": (latent, image, text)}


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "MagCache": MagCache,
    "MagCacheCalibration": MagCacheCalibration,
    "CompileModel": CompileModel,
    # Ours always, also where another pack has the names above.
    "MagPolicySpeedUp": MagPolicySpeedUp,
    "MagPolicy": MagCache,
    "MagPolicyCalibration": MagCacheCalibration,
    "MagPolicyCompile": CompileModel,
    "MagPolicyPreview": MagPolicyPreview,
    "MagPolicyReport": MagPolicyReport,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MagCache": "MagCache",
    "MagCacheCalibration": "MagCache Calibration",
    "CompileModel": "Compile Model",
    "MagPolicySpeedUp": "Speed up (magpolicy)",
    "MagPolicy": "MagCache (magpolicy)",
    "MagPolicyCalibration": "MagCache Calibration (magpolicy)",
    "MagPolicyCompile": "Compile Model (magpolicy)",
    "MagPolicyPreview": "MagCache Preview",
    "MagPolicyReport": "MagCache Report",
}
