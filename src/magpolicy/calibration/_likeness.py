"""What is assumed of two streams of one run whose residuals were never seen together, as those of guidance's branches."""

from __future__ import annotations

import numpy as np

from magpolicy.calibration._gram import Floats, inner
from magpolicy.calibration._moments import StreamMoments

LIKENESS = 0.95
"""Inner product of two streams' residuals at the same two levels, over that within one stream."""
ASSUMED = "between_streams"
"""Where a calibration's provenance says that products between streams were assumed."""


def assumed_cross(first: StreamMoments, second: StreamMoments) -> Floats | None:
    """Inner products between two streams, from those within each.

    ``LIKENESS`` times the product of the roots of both matrices of cosines, with the norms of each: for streams that move alike
    that is ``LIKENESS`` times the products within one, and with any others all products together are still those of some
    residuals (no combination of them has a negative square).

    Returns:
        (N, 2N-1), as in :attr:`magpolicy.Calibration.cross`; ``None`` where some product of the run is not known.
    """
    count = len(first.gram)
    i, j = np.indices((count, count))
    one, other = (inner(moments.gram, i, j) for moments in (first, second))
    norms, others = np.sqrt(np.diagonal(one)), np.sqrt(np.diagonal(other))
    if not (np.isfinite(one).all() and np.isfinite(other).all() and norms.all() and others.all()):
        return None
    shares = _root(one / np.outer(norms, norms)) @ _root(other / np.outer(others, others))
    whole = LIKENESS * np.outer(norms, others) * shares
    return banded_cross(whole)


def banded_cross(whole: Floats) -> Floats:
    """(N, N) inner products between two streams as (N, 2N-1), ``[i, N-1+d]`` being of i and i+d; nan where there is none."""
    count = len(whole)
    i = np.arange(count)[:, None]
    j = i + np.arange(1 - count, count)[None, :]
    found: Floats = np.where((j >= 0) & (j < count), whole[i, np.clip(j, 0, count - 1)], np.nan)
    return found


def _root(cosines: Floats) -> Floats:
    """The symmetric root of a matrix of cosines; what rounding has made negative of it counts as 0."""
    sizes, directions = np.linalg.eigh(cosines)
    found: Floats = (directions * np.sqrt(np.maximum(sizes, 0.0))) @ directions.T
    return found
