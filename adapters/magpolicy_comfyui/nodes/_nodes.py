"""The nodes.

Those named as in ComfyUI-MagCache take its inputs in its order, so that its workflows load; new inputs come after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import magpolicy
from magpolicy_comfyui import _model_presets
from magpolicy_comfyui._compile import compile_model
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._runs import Attachment, attach, attached, log
from magpolicy_comfyui._settings import Settings, recommended
from magpolicy_comfyui.nodes import _preset_names, _publish
from magpolicy_comfyui.nodes._picture import picture

CATEGORY = "MagCache"
_OWN = "magpolicy"
_MANUAL, _PRESET = "as set here", "the preset's"
Inputs = dict[str, dict[str, Any]]


def _rule() -> dict[str, Any]:
    """The settings of the rule, in the origin's order."""
    return {
        "model_type": (
            _preset_names.choices(),
            {"default": _preset_names.AUTO, "tooltip": "Which model this is: its calibration decides. auto reads the model."},
        ),
        "magcache_thresh": (
            "FLOAT",
            {"default": 0.24, "min": 0.0, "max": 10.0, "step": 0.001, "round": 0.001,
             "tooltip": "Bound on the accumulated error. More skips, less like the full run."},
        ),
        "retention_ratio": (
            "FLOAT",
            {"default": 0.1, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "Leading share of the run that always computes."},
        ),
        "magcache_K": ("INT", {"default": 5, "min": 0, "max": 100, "tooltip": "Longest run of skips."}),
        "start_step": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "First step that may be skipped."}),
        "end_step": (
            "INT",
            {"default": -1, "min": -10000, "max": 10000, "tooltip": "Last one; negative counts from the end."},
        ),
    }  # fmt: skip


def _more() -> dict[str, Any]:
    """The new inputs, which old workflows do not have."""
    return {
        "settings": (
            [_MANUAL, _PRESET],
            {"default": _MANUAL, "tooltip": "Take threshold, K and retention from here, or those published with the preset."},
        ),
        "semantics": (
            list(magpolicy.semantics_names()),
            {"default": _OWN, "tooltip": "magpolicy's own rule, or that of a published implementation, decision for decision."},
        ),
        "offload": (["device", "cpu"], {"default": "device", "tooltip": "Where residuals wait between their uses."}),
        "speedup": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": 20.0, "step": 0.1,
             "tooltip": "Plan for a speedup in place of a threshold, e.g. 2 for half the evaluations. 0: by the threshold."},
        ),
        "forecast": (
            ["auto", "hold", "linear", "calibrated", "second-order"],
            {"default": "auto", "tooltip": "What a skipped step gets: the last residual, or where the last ones are heading."},
        ),
    }  # fmt: skip


def _settings(
    model_type: str,
    magcache_thresh: float,
    retention_ratio: float,
    magcache_K: int,
    start_step: int,
    end_step: int,
    settings: str = _MANUAL,
    semantics: str = _OWN,
    offload: str = "device",
    speedup: float = 0.0,
    forecast: str = "auto",
    unique_id: str | None = None,
) -> Settings:
    source = _preset_names.find(model_type, published=settings == _PRESET and not speedup)
    rule: dict[str, Any] = {"threshold": magcache_thresh, "max_skips": magcache_K, "retention": retention_ratio}
    if settings == _PRESET:
        known = recommended(source)
        rule = dict.fromkeys(rule) if source is None else {k: v if known[k] is None else known[k] for k, v in rule.items()}
    made = Settings(
        source=source,
        **rule,
        start_step=start_step,
        end_step=end_step,
        semantics=None if semantics == _OWN else semantics,
        offload=None if offload == "device" else offload,
        speedup=speedup or None,
        forecast=None if forecast == "auto" else forecast,
        node=unique_id,
        follow_steps=model_type == "hunyuan_video1.5",
    )
    made.check()
    return made


class MagCache:
    """Skips the blocks of a model at steps where little changes."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"model": ("MODEL",), **_rule()},
            "optional": _more(),
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def IS_CHANGED(cls, model_type: str | None = None, **_: Any) -> float:
        return _preset_names.changed(model_type)

    def apply(self, model: Any, **inputs: Any) -> tuple[Any]:
        settings = _settings(**inputs)
        if settings.source is None:
            _model_presets.candidates(model.model)  # complains now, not midway through a workflow
        clone = model.clone()
        attach(clone, Attachment(settings, _publish.finished))
        return (clone,)


class MagCacheCalibration:
    """Computes every step, and writes the calibration as a preset that model_type then offers."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {"model": ("MODEL",), "model_type": (_preset_names.choices(), {"default": _preset_names.AUTO})},
            "optional": {
                "name": ("STRING", {"default": "", "tooltip": "Of the preset; empty: the model's class and the steps."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def apply(self, model: Any, model_type: str, name: str = "", unique_id: str | None = None) -> tuple[Any]:
        clone = model.clone()
        settings = Settings(source=_preset_names.find(model_type), calibrate=True, name=name, node=unique_id)
        kind = type(model.model).__name__ if model_type == _preset_names.AUTO else model_type.removeprefix("file: ")

        def finished(attachment: Attachment, outcome: RunReport) -> None:
            written = _write(outcome, settings, kind)
            outcome.notes.append(f"written: {written}" if written else f"nothing was measured: {outcome.problem}")
            _publish.finished(attachment, outcome)

        attach(clone, Attachment(settings, finished))
        return (clone,)


def _write(outcome: RunReport, settings: Settings, kind: str) -> Path | None:
    if outcome.calibration is None:
        return None
    return _preset_names.save(
        settings.name.strip() or f"{Path(kind).stem}-{outcome.calibration.steps}steps", outcome.calibration
    )


class CompileModel:
    """Compiles the blocks of a model with torch.compile, by ComfyUI's own wrapper; before or after MagCache."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
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
    FUNCTION = "preview"
    OUTPUT_NODE = True
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "text")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        steps = ("INT", {"default": 20, "min": 1, "max": 1000, "tooltip": "Steps of the sampler."})
        return {
            "required": {**_rule(), "steps": steps},
            "optional": {**_more(), "model": ("MODEL", {"tooltip": "For model_type auto."})},
        }

    def preview(self, steps: int, model: Any = None, **inputs: Any) -> dict[str, Any]:
        settings = _settings(**inputs)
        source = settings.source
        if source is None:
            if model is None:
                raise magpolicy.ArgumentError("model_type=auto needs the model; connect it, or pick a model_type")
            source = _model_presets.longer(_model_presets.candidates(model.model)[-1].preset, steps)
        schedule = settings.preview(source, steps)
        text = f"{schedule}\n" + ", ".join(f"{reason} {n}" for reason, n in schedule.reasons().items())
        return {"ui": {"text": (text,)}, "result": (picture(schedule), text)}


class MagPolicyReport:
    """What the last sampling of a model computed and skipped, why, and how much faster it was: a picture and a text."""

    CATEGORY = CATEGORY
    DESCRIPTION = __doc__
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
        outcome = None if attachment is None else attachment.outcome
        if outcome is None:
            why = "this model has no MagCache node before it" if attachment is None else "no sampling was run with this model"
            text, image = f"nothing to report: {why}", picture(magpolicy.Schedule.from_mask([True]))
        else:
            text, image = outcome.text, picture(outcome.schedule)
        return {"ui": {"text": (text,)}, "result": (latent, image, text)}


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "MagCache": MagCache,
    "MagCacheCalibration": MagCacheCalibration,
    "CompileModel": CompileModel,
    # Ours always, also where another pack has the names above.
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
    "MagPolicy": "MagCache (magpolicy)",
    "MagPolicyCalibration": "MagCache Calibration (magpolicy)",
    "MagPolicyCompile": "Compile Model (magpolicy)",
    "MagPolicyPreview": "MagCache Preview",
    "MagPolicyReport": "MagCache Report",
}


def origin() -> Path | None:
    """The folder of ComfyUI-MagCache, if it is installed beside this pack: it has nodes of the same names."""
    import folder_paths

    for place in folder_paths.get_folder_paths("custom_nodes"):
        entries = Path(place).glob("*") if Path(place).is_dir() else ()
        found = next((entry for entry in entries if entry.name.lower() == "comfyui-magcache" and entry.is_dir()), None)
        if found is not None:
            return found
    return None


def _say_if_beside() -> None:
    if (found := origin()) is not None:
        log.warning(
            "magpolicy: %s is installed too, and has nodes of the same names; which of them a workflow gets is left to "
            "ComfyUI. Remove that folder, or use the nodes named (magpolicy).",
            found,
        )


_say_if_beside()
