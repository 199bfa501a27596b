"""A calibration read at other noise levels.

The residual is taken for a path over noise level, known at the calibrated evaluations and interpolated between them: the
residual at another level is a fixed weighted sum of the nearest calibrated ones. Inner products of such sums are sums of the
inner products that are known, ``W G W^T``, so no residual is needed and what comes out is always the Gram matrix of some path:
errors are never negative, the hold error between equal levels is 0, and at the calibrated levels nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from magpolicy.calibration import _gram
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._moments import StreamMoments
from magpolicy.policy._curve import Curve

# Cubic. Straight lines cut the corners of the path: from 28 steps to 50 they made forecast errors 11% too small in the mean,
# cubic ones 7%, from 15 to 28 9% and 3%; noise level, its share of the run and log-SNR as the parameter did equally well. More
# points are better still (from 20 steps to 28, plans by up to 6 dB), but each costs a part of a window shorter than the run.
POINTS, POINTS_OF_WHOLE = 4, 6


def falling(levels: Sequence[float]) -> list[int]:
    """Evaluations at which the noise is lower than ever before: all of a schedule's, some of a second-order sampler's."""
    found: list[int] = []
    lowest = np.inf
    for i, level in enumerate(levels):
        if level < lowest:
            found.append(i)
            lowest = level
    return found


@frozen(eq=False)
class Interpolation:
    """For each evaluation of a run, the calibrated evaluations (``index``) its residual is a sum of, and their ``shares``."""

    index: NDArray[np.int64]
    shares: Floats

    @classmethod
    def at(cls, levels: Sequence[float], target: Sequence[float], window: int) -> Interpolation:
        """Lagrange interpolation through the nearest calibrated levels; nan outside their range.

        The parameter is the position among the calibrated levels, in which a schedule's own spacing is even. No more levels are
        taken than inner products are known of.
        """
        kept = np.asarray(falling(levels))
        known = np.asarray(levels)[kept]
        wanted = POINTS_OF_WHOLE if window >= len(levels) - 1 else POINTS
        count, points = len(kept), min(wanted, len(kept), window + 1)
        place = np.interp(target, known[::-1], np.arange(count, dtype=np.float64)[::-1])
        whole = np.rint(place)
        place = np.where(np.abs(place - whole) < 1e-9, whole, place)
        before = np.floor(place if points > 1 else place + 0.5).astype(np.int64)
        start = np.clip(before - max(points // 2 - 1, 0), 0, count - points)
        index = start[:, None] + np.arange(points)
        shares = np.ones(index.shape)
        for q in range(points):
            for other in set(range(points)) - {q}:
                shares[:, q] *= (place - index[:, other]) / (q - other)
        inside = np.asarray(Curve([1.0] * count, sigmas=known.tolist()).covers(list(target)))
        return cls(kept[index], np.where(inside[:, None], shares, np.nan))

    def inner(self, look_up: Callable[[Any, Any], Floats], first: Any, second: Any) -> Floats:
        """Inner products of the sums at positions ``first`` and ``second``, from those of the calibrated residuals."""
        products = look_up(self.index[first][..., :, None], self.index[second][..., None, :])
        shares = self.shares[first][..., :, None] * self.shares[second][..., None, :]
        total: Floats = np.where(shares == 0.0, 0.0, shares * products).sum(axis=(-2, -1))
        return total

    def gram(self, gram: Floats, widest: int | None = None) -> Floats:
        """The banded Gram matrix of the sums, as wide as anything of it is known."""
        count = len(self.index)
        columns: list[Floats] = []
        for back in range(count if widest is None else widest):
            column = np.full(count, np.nan)
            late = np.arange(back, count)
            column[back:] = self.inner(lambda i, j: _gram.inner(gram, i, j), late, late - back)
            if back and widest is None and np.isnan(column).all():
                break
            columns.append(column)
        return np.stack(columns, axis=1)

    def cross(self, table: Floats, window: int) -> Floats:
        """The same of products between two streams."""
        count = len(self.index)
        i = np.broadcast_to(np.arange(count)[:, None], (count, 2 * window + 1))
        j = i + np.arange(-window, window + 1)
        inside = (j >= 0) & (j < count)
        found = self.inner(lambda a, b: _gram.cross_inner(table, a, b), i, np.clip(j, 0, count - 1))
        return np.where(inside, found, np.nan)


def resample(
    levels: Sequence[float],
    streams: Mapping[str, StreamMoments],
    cross: Mapping[tuple[str, str], Floats],
    target: Sequence[float],
    curve: Curve,
) -> tuple[dict[str, StreamMoments], dict[tuple[str, str], Floats]]:
    """Moments per stream and products per pair of streams, known at ``levels``, read at the ``target`` levels.

    ``curve`` holds the ratios at the target levels.
    """
    mix = Interpolation.at(levels, target, min(moments.window for moments in streams.values()))
    read = {name: _moments(moments, levels, target, mix, curve.of(name)) for name, moments in streams.items()}
    window = min(moments.window for moments in read.values())
    return read, {pair: mix.cross(table, window) for pair, table in cross.items()}


def _moments(
    moments: StreamMoments, levels: Sequence[float], target: Sequence[float], mix: Interpolation, ratios: Sequence[float]
) -> StreamMoments:
    gram = mix.gram(moments.gram)
    samples = None if moments.samples is None else np.stack([mix.gram(s, gram.shape[1]) for s in moments.samples])
    # The angle a residual turns by adds up along a smooth path, and 1 - cos is half its square.
    angles = _along(levels, np.sqrt(2 * np.maximum(moments.cosine, 0.0)), target)
    return StreamMoments(
        gram=gram,
        ratios=ratios,
        spread=np.abs(_along(levels, np.asarray(moments.spread), target)),
        cosine=1 - np.cos(np.minimum(angles, np.pi)),
        samples=samples,
    )


def _along(levels: Sequence[float], steps: Floats, target: Sequence[float]) -> Floats:
    """What adds up by ``steps`` between the levels, between the target levels; the first has nothing before it."""
    kept = falling(levels)
    total = np.cumsum(steps)[kept]
    there = np.interp(target, np.asarray(levels)[kept][::-1], total[::-1])
    return np.abs(np.diff(there, prepend=there[0]))
