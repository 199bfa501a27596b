"""Which model a ``ModelPatcher`` has, and which of the user's calibrations serve a run of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from magpolicy import Calibration, Preset
from magpolicy.adapter import (
    PRESET_ENDINGS,
    ModelIdentity,
    PresetMatches,
    RunConfig,
    calibration_of,
    kept_for,
    presets_in,
    remarks_on_choice,
)
from magpolicy_torch import adapter
from torch import nn

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan

FOLDER = "magpolicy"
MARK = "file: "
"""Before the name of a file of the user's, where a node offers it."""
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


def files() -> dict[str, Path]:
    """The user's own presets in these folders, by the name that nodes offer them by."""
    found: dict[str, Path] = {}
    for place in folders():
        for path in sorted(place.glob("*")):
            if path.suffix in PRESET_ENDINGS and path.is_file():
                found.setdefault(f"{MARK}{path.name}", path)
    return found


def remarks_on(identity: ModelIdentity, config: RunConfig, span: ScheduleSpan, *, in_a_node: bool) -> tuple[str, ...]:
    """What is to be said of the calibration that a run found for its model, or of the user's own that it passed over.

    Args:
        identity: the model.
        config: what decides.
        span: the run.
        in_a_node: whether it is a node's, and not one of :func:`magpolicy.attach`.
    """
    used, more = calibration_of(config.given), [preset for folder in folders() for preset in presets_in(folder)]
    choice = _in_a_node if in_a_node else _as_argument
    said = remarks_on_choice(identity, used, by_rule=config.by_rule, more=more, choice=choice)
    if said or used is not None or kept_of(identity, span):
        return said
    elsewhere = [p for p in kept_for(identity, more=more) if p.calibration and "learned" not in p.calibration.provenance]
    if not elsewhere:
        return ()
    return (f"your calibration {elsewhere[0].name!r} is of another part of the noise levels than this run, and passed over",)


def _in_a_node(preset: Preset) -> str:
    file = _file_of(preset)
    return f"MagCache with model_type {preset.name if file is None else f'{MARK}{file.name}'!r}"


def _as_argument(preset: Preset) -> str:
    file = _file_of(preset)
    return f"preset={preset.name if file is None else str(file)!r}"


def _file_of(preset: Preset) -> Path | None:
    """The file in these folders; ``None`` for what magpolicy keeps."""
    return next((path for path in files().values() if preset in presets_in(path.parent, path.name)), None)


def _reaches(calibration: Calibration, span: ScheduleSpan) -> bool:
    low, high = min(calibration.sigmas), max(calibration.sigmas)
    margin = (high - low) / max(calibration.steps - 1, 1)
    inside = [low - margin <= level <= high + margin for level in span.flow]
    return sum(inside) >= _REACH * len(inside)
