"""The schedule of a sampling that has not begun: the sampler's settings alone say where its evaluations will lie."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from attrs import evolve, frozen

from magpolicy import ArgumentError, Schedule
from magpolicy.adapter import Placement, RunConfig, place, whole
from magpolicy_comfyui import _dry_run, _model_presets, _noise_levels
from magpolicy_comfyui._learning import next_config
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui._sources import SampledModel

MAX_STEPS = 2_000  # more than anybody samples with; a panel asks again and again
# Samplers that draw from the common generator even when they are given a seed; and one that steps as another does.
_DRAWING = ("heunpp2",)
_AS = {"ddim": "euler"}
INPUTS: dict[str, tuple[Any, ...]] = {
    "steps": ("INT", {"min": 1, "max": MAX_STEPS, "default": 20}),
    "sampler_name": ("STRING", {"default": "euler"}),
    "scheduler": ("STRING", {"default": "simple"}),
    "denoise": ("FLOAT", {"min": 0.0, "max": 1.0, "default": 1.0}),
    "cfg": ("FLOAT", {"min": 0.0, "max": 100.0, "default": 1.0}),
    "shift": ("FLOAT", {"min": 0.0, "max": 100.0, "default": 3.0}),
    "start_at_step": ("INT", {"min": 0, "max": 10_000, "default": 0}),
    "end_at_step": ("INT", {"min": 0, "max": 10_000, "default": 10_000}),
}
"""What the nodes behind a model may say of sampling it, in the bounds that ComfyUI's own nodes have."""
_ENDS = ("start_at_step", "end_at_step", "denoise", "cfg", "shift")


@frozen(kw_only=True)
class Sampler:
    """What the nodes behind a model say about sampling it."""

    steps: int
    sampler_name: str | None = None
    scheduler: str | None = None
    denoise: float = 1.0
    start_at_step: int = 0
    end_at_step: int | None = None
    cfg: float | None = None
    """The scale of guidance, for plans."""
    shift: float | None = None
    """Of a node that sets one; ``None``: the model's own, which does not matter for most schedulers."""
    custom: bool = False
    """The noise levels come from a scheduler node, not from KSampler, which treats some samplers in its own way."""

    @classmethod
    def of(cls, values: Mapping[str, Any], default_steps: int) -> Sampler:
        """From JSON values; what is missing or of no sense to ComfyUI is left at its default.

        Raises:
            ArgumentError: steps or a part of the schedule is out of range.
        """
        given: dict[str, Any] = {key: values[key] for key in _ENDS if isinstance(values.get(key), int | float)}
        given |= {key: str(values[key]) for key in ("sampler_name", "scheduler") if values.get(key) is not None}
        steps = values.get("steps")
        return cls(
            steps=whole("steps", default_steps if steps is None else steps, 1, MAX_STEPS, example=str(default_steps)),
            custom=bool(values.get("custom")),
            **given,
        )


@frozen
class Preview:
    """What will run, as far as it is known before."""

    schedule: Schedule
    config: RunConfig
    """What decides."""
    remark: str | None = None
    """Where it is not known exactly."""
    differs: str = ""
    """In what it differs from what was asked."""

    @classmethod
    def of(cls, placed: Placement, remark: str | None) -> Preview:
        """Of a run."""
        return cls(placed.simulate(), placed.config, remark, placed.differs)


def preview(
    settings: Settings, source: Any, sampler: Sampler, *, flux: bool = False, seen: SampledModel | None = None
) -> Preview:
    """What will run. ``seen`` is the model, where it was sampled before: what was learned of it may decide.

    Raises:
        ArgumentError: settings that do not fit, or a part of the schedule with nothing in it.
    """
    known = (None, ()) if seen is None else (seen.identity, seen.streams)
    found = _evaluations(sampler, flux)
    if found is None:
        placed = settings.place(source, sampler.steps)
        placed = evolve(placed, config=next_config(settings, placed.config, sampler.steps, *known).with_guidance(sampler.cfg))
        return Preview.of(placed, "evenly spaced steps, one evaluation each, are assumed")
    evaluations, levels, model_sampling, certain = found
    span = _noise_levels.span_of(evaluations, levels, model_sampling)
    if settings.follow_steps:
        source = _model_presets.longer(source.name, span.steps)
    config = settings.config(source, span, _noise_levels.steps_of(evaluations, levels))
    remark = None if certain else "one evaluation a step is assumed: this sampler's are known when it runs"
    placed = place(next_config(settings, config, span.steps, *known).with_guidance(sampler.cfg), span)
    return Preview.of(placed, remark)


def _evaluations(sampler: Sampler, flux: bool) -> tuple[list[float], list[float], Any, bool] | None:
    """Sigmas of the evaluations, of the steps, what relates them to time, and whether the first are certain."""
    import comfy.samplers

    if sampler.scheduler not in comfy.samplers.SCHEDULER_NAMES:
        return None
    model_sampling = _model_sampling(sampler.shift, flux)
    model = SimpleNamespace(model_sampling=model_sampling)
    patcher = SimpleNamespace(model=model, get_model_object=vars(model).__getitem__)
    sigmas = _sigmas(sampler, patcher, model_sampling)
    if len(sigmas) < 2:
        raise ArgumentError(
            f"start_at_step={sampler.start_at_step}: nothing of the schedule of {sampler.steps} steps is left to sample"
        )
    levels = [float(sigma) for sigma in sigmas]
    if any(level != level for level in levels):
        raise ArgumentError(f"shift={sampler.shift} leaves no noise levels to sample at; try 3")
    name = sampler.sampler_name
    if name is None or name not in comfy.samplers.SAMPLER_NAMES:
        return levels[:-1], levels, model_sampling, False
    guider = SimpleNamespace(inner_model=model, model_patcher=patcher, cfg=sampler.cfg)  # what samplers and their logs read
    make = comfy.samplers.sampler_object
    evaluations = None if name in _DRAWING else _dry_run_alone(make(_AS.get(name, name)), guider, sigmas)
    return evaluations or levels[:-1], levels, model_sampling, evaluations is not None


def _dry_run_alone(sampler: Any, guider: Any, sigmas: Any) -> list[float] | None:
    """The sigma of each evaluation, as :func:`magpolicy_comfyui._dry_run.dry_run`.

    A sampling may be going on in another thread, so PyTorch's common generator, which that may draw from, is not touched.
    """
    import torch

    try:
        with torch.no_grad():
            found = _dry_run.rehearse(sampler, guider, sigmas, seed=0, dimensions=4)
    except Exception:
        return None
    return list(found.sigmas) if found.known else None


def _sigmas(sampler: Sampler, patcher: Any, model_sampling: Any) -> Any:
    """The noise levels of the steps, by ComfyUI's own functions."""
    import comfy.samplers

    total = sampler.steps if sampler.denoise > 0.9999 else int(sampler.steps / max(sampler.denoise, 1e-4))
    if total > MAX_STEPS:
        raise ArgumentError(f"denoise={sampler.denoise} makes a schedule of {total} steps, at most {MAX_STEPS} are previewed")
    if sampler.custom:
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, sampler.scheduler, total)[-(sampler.steps + 1) :]
    else:
        own = comfy.samplers.KSampler(
            patcher, steps=sampler.steps, device="cpu", sampler=sampler.sampler_name, scheduler=sampler.scheduler,
            denoise=sampler.denoise,
        )  # fmt: skip
        sigmas = own.sigmas
    end = None if sampler.end_at_step is None else int(sampler.end_at_step) + 1
    return sigmas[int(sampler.start_at_step) : end]


def _model_sampling(shift: float | None, flux: bool) -> Any:
    """Flow matching's, as all models with published presets have it."""
    import comfy.model_base

    kinds = comfy.model_base.ModelType
    found = comfy.model_base.model_sampling(None, kinds.FLUX if flux else kinds.FLOW)
    if shift is not None:
        found.set_parameters(shift=shift)
    return found
