"""A source read at the noise levels of a run: measured inner products, or inner products modelled from ratios alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._from_ratios import from_ratios
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._source import SourceContent


@frozen
class SourceAtLevels:
    """What a source says of one run."""

    calibration: Calibration
    """Inner products of the run's residuals."""
    preset: Preset | None
    """The preset the source is, for its settings."""
    measured: bool
    """Whether the inner products were measured; else they are modelled from ratios."""
    levels_known: bool
    """Whether the noise levels are those of the run; else flow levels are assumed."""


def at_levels(source: Any, steps: int | None, sigmas: Sequence[float] | None) -> SourceAtLevels:
    """The source at the noise levels of a run of ``steps`` steps, or at ``sigmas``; as calibrated by default.

    Raises:
        ArgumentError: ``steps`` contradicts ``sigmas``, or they do not fit the source.
        PresetError: a name or file that is not known.
    """
    content = SourceContent.of(source)
    if content.calibration is not None:
        return SourceAtLevels(content.calibration.resample(steps=steps, sigmas=sigmas), content.preset, True, True)
    known = sigmas is not None or content.levels_known
    return SourceAtLevels(from_ratios(content.curve, steps, sigmas), content.preset, False, known)
