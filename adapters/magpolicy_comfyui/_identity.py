"""Which model a ``ModelPatcher`` has, and which of the user's calibrations serve a run of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from magpolicy import Calibration
from magpolicy.adapter import PRESET_ENDINGS, ModelIdentity, PresetMatches, kept_for, presets_in
from magpolicy_torch import adapter
from torch import nn

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan

FOLDER = "magpolicy"
_REACH = 0.5
"""So much of a run, at least, has to lie within what was calibrated."""


def identity_of(patcher: Any) -> ModelIdentity:
    """The identity of the model in ``patcher``: its class in ComfyUI, its figures, and its weights before any patch.

    ComfyUI merges the patches of LoRAs into weights while it samples, and keeps the weights' own values. A model stays the same
    with other LoRAs and other strengths: its residuals are nearly those of the model alone, and a workflow may change a
    strength with every run.
    """
    model = patcher.model
    found = adapter.identity_of(_Unpatched(patcher), model.model_config.unet_config)
    return evolve(found, model=type(model).__name__)


class _Unpatched(nn.Module):
    """Stands for a diffusion model where its parameters are looked at."""

    def __init__(self, patcher: Any) -> None:
        super().__init__()
        self._module = (patcher.model.diffusion_model,)  # no child of this one
        own = getattr(patcher, "backup", {})
        self._own = {name.removeprefix("diffusion_model."): kept.weight for name, kept in own.items()}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._module[0].named_parameters(*args, **kwargs):
            yield name, self._own.get(name, parameter)


def kept_of(identity: ModelIdentity, span: ScheduleSpan | None = None) -> PresetMatches:
    """The user's calibrations of a model, the nearest first: in this ComfyUI's folder, and those kept by magpolicy.

    Args:
        identity: the model.
        span: the run to come. Of two experts, and of stages, each has its own part of the noise levels: calibrations of another
            part are left out.
    """
    more = [preset for folder in folders() for preset in presets_in(folder)]
    found = kept_for(identity, more=more)
    if span is None:
        return found
    return PresetMatches(p for p in found if p.calibration is not None and _reaches(p.calibration, span))


def folders() -> list[Path]:
    """Where calibrations are kept: ``models/magpolicy`` of this ComfyUI, unless extra_model_paths says otherwise."""
    import folder_paths

    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.folder_names_and_paths[FOLDER] = ([str(Path(folder_paths.models_dir) / FOLDER)], set(PRESET_ENDINGS))
    return [Path(folder) for folder in folder_paths.folder_names_and_paths[FOLDER][0]]


def _reaches(calibration: Calibration, span: ScheduleSpan) -> bool:
    low, high = min(calibration.sigmas), max(calibration.sigmas)
    margin = (high - low) / max(calibration.steps - 1, 1)
    inside = [low - margin <= level <= high + margin for level in span.flow]
    return sum(inside) >= _REACH * len(inside)
