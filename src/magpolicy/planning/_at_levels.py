"""A source read at the noise levels of a run: measured inner products, or inner products modelled from ratios alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._moments import StreamMoments
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._source import SourceContent
from magpolicy.policy._curve import Curve

# Radians by which the residual is taken to turn from the highest noise level to none. Without any turn, ratios that grow and
# then shrink look like no error at all; on the demo's model plans were up to 1.5 dB better with 1 than with 0 or 2.
TURN = 1.0


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
    return SourceAtLevels(_modelled(content.curve, steps, sigmas), content.preset, False, known)


def _modelled(curve: Curve, steps: int | None, sigmas: Sequence[float] | None) -> Calibration:
    """Ratios alone as a calibration: residuals of the lengths they say, that turn evenly over noise level.

    With P the growth from j to i, reusing r_j at i has the relative error ``|1 - e^(1j t) / P|`` with t the angle turned by;
    at t=0 that is abs(1 - 1/P), the rule's own model (arXiv 2506.09045, section 4) but for what it is relative to.
    """
    levels = _levels(curve, steps, sigmas)
    run = curve.resample(sigmas=levels)
    angle = TURN * np.asarray(levels) / curve.levels[0]
    streams = {}
    for name, ratios in run.ratios.items():
        size = np.where(curve.covers(levels), np.cumprod(ratios), np.nan)
        gram = np.full((len(levels), len(levels)), np.nan)
        for back in range(len(levels)):
            before = slice(0, len(levels) - back)
            gram[back:, back] = size[back:] * size[before] * np.cos(angle[back:] - angle[before])
        nothing = (0.0,) * len(levels)
        streams[name] = StreamMoments(gram, ratios, nothing, nothing)
    return Calibration(sigmas=levels, streams=streams)


def _levels(curve: Curve, steps: int | None, sigmas: Sequence[float] | None) -> tuple[float, ...]:
    if sigmas is None:
        return tuple(curve.levels_for(curve.steps if steps is None else _checks.steps(steps, example="28")))
    levels = _checks.levels("sigmas", sigmas)
    if steps is not None and steps not in (len(levels), len(sigmas)):
        raise ArgumentError(f"steps={steps} contradicts sigmas with {len(levels)} levels; give one of them")
    return levels
