"""Magnitude ratios taken for a calibration: what plans are made from where nothing more was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from magpolicy import _checks
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._moments import StreamMoments
from magpolicy.policy._curve import Curve

# Radians by which the residual is taken to turn from the highest noise level to none. Without any turn, ratios that grow and
# then shrink look like no error at all; on the demo's model plans were up to 1.5 dB better with 1 than with 0 or 2.
TURN = 1.0


def from_ratios(curve: Curve, steps: int | None, sigmas: Sequence[float] | None) -> Calibration:
    """Ratios alone as a calibration: residuals of the lengths they say, that turn evenly over noise level.

    With P the growth from j to i, reusing r_j at i has the relative error ``|1 - e^(1j t) / P|`` with t the angle turned by;
    at t=0 that is abs(1 - 1/P), the rule's own model (arXiv 2506.09045, section 4) but for what it is relative to.
    """
    levels = _checks.run_levels(steps, sigmas)
    if levels is None:
        levels = tuple(curve.levels_for(curve.steps if steps is None else _checks.steps(steps, example="28")))
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
