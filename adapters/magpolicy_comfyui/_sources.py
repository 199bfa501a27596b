"""What a run is planned from, where the user names no preset: the best that is known of the model, which may be nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from magpolicy import ArgumentError, Preset
from magpolicy.adapter import ModelIdentity, PresetMatches, names_a_file
from magpolicy_comfyui._identity import identity_of, kept_of
from magpolicy_comfyui._streams import evaluated_by

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan


MAX_SHIFT = 100.0
"""Of noise levels; ComfyUI's own nodes set none above."""


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
            identity=identity_of(guider.model_patcher),
            streams=evaluated_by(guider),
            flux="ModelSamplingFlux" in {base.__name__ for base in type(sampling).__mro__},
            shift=None if shift is None else float(shift),
        )

    @classmethod
    def of(cls, values: Any) -> SampledModel | None:
        """From JSON values, as :meth:`to_dict` makes them; ``None`` if they are none."""
        if not isinstance(values, Mapping):
            return None
        preset, shift, streams = values.get("preset"), values.get("shift"), values.get("streams")
        try:
            identity = ModelIdentity.from_dict(values.get("identity"))
        except ArgumentError:
            identity = None
        return cls(
            identity=identity,
            streams=tuple(map(str, streams)) if isinstance(streams, list | tuple) else (),
            preset=preset if isinstance(preset, str) and not names_a_file(preset) else None,
            flux=bool(values.get("flux")),
            shift=float(shift) if isinstance(shift, int | float) and 0 <= shift <= MAX_SHIFT else None,
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

    def for_plan(self, span: ScheduleSpan | None = None) -> PresetMatches | None:
        """What a run over ``span`` is planned from, best first; ``None``: nothing is known of the model.

        First the user's calibrations that have all of its streams, then the others, then the published preset. What runs with
        more streams taught comes after what runs with just these did.

        Raises:
            PresetError: the preset is not known.
        """
        kept = [] if self.identity is None else kept_of(self.identity, span)
        kept = sorted(kept, key=self._fits)
        published = [] if self.preset is None else [self.preset]
        return PresetMatches.of([*kept, *published]) or None

    def for_rule(self) -> str | Preset | None:
        """What the rule goes by: the published preset, or else a calibration of the user's; ``None``: there is neither."""
        kept = () if self.preset is not None or self.identity is None else kept_of(self.identity)
        return self.preset or next(iter(kept), None)

    def _fits(self, preset: Preset) -> tuple[bool, bool]:
        calibration = preset.calibration
        had, wanted = set(calibration.streams if calibration else ()), set(self.streams)
        return not wanted <= had, had != wanted and calibration is not None and "learned" in calibration.provenance
