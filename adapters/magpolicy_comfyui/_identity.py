"""Which model a ModelPatcher has, and which of the user's calibrations serve a run of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from magpolicy import Calibration
from magpolicy.adapter import PRESET_ENDINGS, ModelIdentity, PresetMatches, kept_for, presets_in
from magpolicy_torch import adapter

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan

FOLDER = "magpolicy"
_REACH = 0.5
"""So much of a run, at least, has to lie within what was calibrated."""


def identity_of(model: Any) -> ModelIdentity:
    """The identity of a ``BaseModel``: its class there, its figures, and its weights as they are loaded, LoRAs among them."""
    found = adapter.identity_of(model.diffusion_model, model.model_config.unet_config)
    return evolve(found, model=type(model).__name__)


def kept_of(model: Any, span: ScheduleSpan | None = None) -> PresetMatches:
    """The user's calibrations of a ``BaseModel``, the nearest first: in this ComfyUI's folder, and those kept by magpolicy.

    Args:
        span: the run to come. Of two experts, and of stages, each has its own part of the noise levels: calibrations of another
            part are left out.
    """
    more = [preset for folder in folders() for preset in presets_in(folder)]
    found = kept_for(identity_of(model), more=more)
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
