"""What a run is planned from, where the user names no preset: the best that is known of the model, which may be nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from magpolicy import ArgumentError, Preset
from magpolicy.adapter import ModelIdentity, PresetMatches, kept_for, named, names_a_file
from magpolicy_comfyui._calibration_files import made_with
from magpolicy_comfyui._identity import identity as identity_of_patcher
from magpolicy_comfyui._streams import ROLES


@frozen
class SampledModel:
    """What of a model decides how its runs are planned. It is known once the model is sampled; a panel then asks with it."""

    preset: str | None = None
    """The preset that was calibrated on it; ``None``: none was."""
    identity: ModelIdentity | None = None
    streams: tuple[str, ...] = ()
    """Of its runs."""
    flux: bool = False
    """Whether its noise levels are those of FLUX."""
    shift: float | None = None
    """Of its noise levels; ``None``: they have none."""

    @classmethod
    def sampled_by(cls, guider: Any, preset: str | None) -> SampledModel:
        """The model that a guider of ComfyUI samples, and the preset that was calibrated on it."""
        sampling = guider.inner_model.model_sampling
        shift = getattr(sampling, "shift", None)
        return cls(
            preset=preset,
            identity=identity_of_patcher(guider.model_patcher),
            streams=_streams(guider),
            flux="ModelSamplingFlux" in {base.__name__ for base in type(sampling).__mro__},
            shift=None if shift is None else float(shift),
        )

    @classmethod
    def of(cls, values: Any) -> SampledModel | None:
        """From JSON values, as :meth:`to_dict` makes them; ``None`` if they are none."""
        if not isinstance(values, Mapping):
            return None
        preset, shift = values.get("preset"), values.get("shift")
        try:
            identity = ModelIdentity.from_dict(values.get("identity"))
        except ArgumentError:
            identity = None
        return cls(
            identity=identity,
            streams=tuple(map(str, values.get("streams") or ())),
            preset=preset if isinstance(preset, str) and not names_a_file(preset) else None,
            flux=bool(values.get("flux")),
            shift=float(shift) if isinstance(shift, int | float) else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "preset": self.preset,
            "identity": None if self.identity is None else self.identity.to_dict(),
            "streams": list(self.streams),
            "flux": self.flux,
            "shift": self.shift,
        }

    def for_plan(self) -> PresetMatches | None:
        """What a run is planned from, best first; ``None``: nothing is known of the model.

        Raises:
            PresetError: the preset is not known.
        """
        kept = self.measured()
        published: tuple[Preset, ...] = () if self.preset is None else named(self.preset)
        return PresetMatches.of([*kept, *published]) if kept or published else None

    def measured(self) -> PresetMatches:
        """The user's calibrations of it, best first: those that have all of its streams, or else all."""
        if self.identity is None:
            return PresetMatches()
        found = calibrations_of(self.identity)
        whole = [preset for preset in found if preset.calibration and set(self.streams) <= set(preset.calibration.streams)]
        return PresetMatches(whole or found)


def calibrations_of(identity: ModelIdentity) -> list[Preset]:
    """The user's calibrations of a model, best first: those in the library, and those in ComfyUI's folder.

    They are in the order of :func:`magpolicy.adapter.kept_for`: the nearest first, and of equally near ones first those that
    the user made.
    """

    def order(preset: Preset) -> tuple[int, bool]:
        assert preset.calibration is not None
        return -identity.nearness(ModelIdentity.of(preset.calibration)), "learned" in preset.calibration.provenance

    return sorted([*kept_for(identity), *made_with(identity)], key=order)


def _streams(guider: Any) -> tuple[str, ...]:
    """The conditions that a guider evaluates; at a guidance scale of 1 it leaves the negative one out."""
    names = [ROLES.get(role, role) for role, conds in guider.conds.items() if conds]
    alone = getattr(guider, "cfg", None) == 1.0 and not guider.model_options.get("disable_cfg1_optimization", False)
    return tuple(name for name in names if not (alone and name == "uncond"))
