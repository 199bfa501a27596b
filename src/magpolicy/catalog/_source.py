"""What ratios and calibrations may be given as: a sequence, a curve, a calibration, a preset, its name or file, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.catalog._matching import preset
from magpolicy.catalog._presets import Preset
from magpolicy.policy._curve import Curve

Source = Sequence[float] | Mapping[str, Sequence[float]] | Curve | Calibration | Preset | str | Path
PlanSource = Source | None
"""What a plan is made from; ``None``: nothing is known of the model, and the general prior stands in."""


@frozen
class SourceContent:
    """What a source holds."""

    preset: Preset | None
    """The preset it is or names; ``None``: it is none."""
    calibration: Calibration | None
    """Measured inner products of residuals; ``None``: only ratios are known, or nothing."""
    _ratios: Any
    """``None``: nothing is known."""

    @classmethod
    def of(cls, source: Any) -> SourceContent:
        """The content of ``source``; of several presets that go by a name, the first counts. ``None`` holds nothing.

        Raises:
            PresetError: a name or file that is not known.
        """
        given = preset(source) if isinstance(source, str | Path) else source
        if isinstance(given, Preset):
            return cls(given, given.calibration, given.curve)
        return cls(None, given if isinstance(given, Calibration) else None, given)

    @property
    def curve(self) -> Curve | None:
        """The magnitude ratios; ``None`` where nothing is known.

        Raises:
            ArgumentError: what was given is no sequence of ratios.
        """
        if self.calibration is not None and self.preset is None:
            return self.calibration.curve
        return self._ratios if self._ratios is None or isinstance(self._ratios, Curve) else Curve(self._ratios)

    def check_expert_step(self, expert_step: Any) -> None:
        """A published table says whether its model has a second expert; a calibration, or ratios of one's own, do not.

        Raises:
            ArgumentError: a step is given at which it takes over, and there is none.
        """
        preset = self.preset
        if expert_step is None or preset is None or not preset.settings or preset.expert_boundary is not None:
            return
        raise ArgumentError(
            f"expert_step={_checks._short(expert_step)}: the model of preset {preset.name!r} has no second expert; "
            "leave expert_step out"
        )

    @property
    def levels_known(self) -> bool:
        """Whether it was calibrated at known noise levels; else flow levels are assumed."""
        return self.calibration is not None or (self.curve is not None and not self.curve.assumed)

    def reads(self, sigmas: Sequence[float]) -> bool:
        """Whether it can be read at these noise levels; what flow models have in common can be at any."""
        return self.calibration is not None or self.curve is None or self.curve.reaches(sigmas)
