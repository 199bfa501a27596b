"""A calibration of one sample, made to hold for others: a small share of it is the general prior's.

One sample's inner products say too much: where two streams, or two steps, are nearly alike, a plan finds coefficients that
cancel what they differ by in this sample alone, and other samples differ by something else. A few percent of what the prior
expects are enough to let such coefficients not pay.
"""

from __future__ import annotations

import numpy as np
from attrs import evolve

from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._prior import DIRECTIONS, LIKENESS, Directions, _banded, _crossed, _flow_levels


def mixed_with_prior(calibration: Calibration, share: float, *, directions: Directions = DIRECTIONS) -> Calibration:
    """A calibration whose inner products are those that were measured, but for a ``share`` that is the prior's.

    The norms stay as they are.
    """
    cosines = directions.cosines(_flow_levels(np.asarray(calibration.sigmas)))
    norms = {name: np.sqrt(moments.gram[:, 0]) for name, moments in calibration.streams.items()}

    def mixed(measured: Floats, expected: Floats) -> Floats:
        return (1 - share) * measured + share * expected

    streams = {}
    for name, moments in calibration.streams.items():
        expected = _banded(norms[name], cosines)[:, : moments.window + 1]
        samples = None if moments.samples is None else np.stack([mixed(one, expected) for one in moments.samples])
        streams[name] = evolve(moments, gram=mixed(moments.gram, expected), samples=samples)
    cross = {}
    for (a, b), table in calibration.cross.items():
        margin = len(table) - 1 - table.shape[1] // 2
        expected = _crossed(norms[a], norms[b], LIKENESS * cosines)
        cross[a, b] = mixed(table, expected[:, margin : margin + table.shape[1]])
    return evolve(calibration, streams=streams, cross=cross)
