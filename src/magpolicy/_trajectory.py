"""How far a schedule takes the latent off its way, to first order, and moves that make it less.

The error of a skipped step is added to the latent and stays there. Errors of different gaps are vectors that may add up or
cancel, so the distance at the end is not a sum over gaps; it is a quadratic form of the inner products that are known anyway:

    L_i = sum of h_t d_t over skipped t <= i,    cost = |L_last|^2 + sum_i h_i |L_i|^2 / sum_i h_i

with d_t the combined error at t and h_t the step size. It has no exact shortest path; a plan of another objective is taken and
computed steps are moved while that helps. Errors whose inner product is not known whole, because they lie further apart than
the window is wide, are taken to be at right angles: parts of one would not cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from magpolicy._gram import Floats
from magpolicy._ledger import Ledger

LONGEST = 200  # steps; the quadratic form takes steps^3 operations, and more steps gain nothing from it


class Trajectory:
    """Scores schedules of one run by the latent's distance from its way."""

    def __init__(self, ledger: Ledger, sizes: Floats, closed: NDArray[np.bool_]) -> None:
        self._ledger, self._sizes, self._closed = ledger, sizes, closed
        self._count = count = ledger.count
        names = list(ledger.tables)
        at = {name: slice(place * count, (place + 1) * count) for place, name in enumerate(names)}
        i, j = np.arange(count)[:, None], np.arange(count)[None, :]
        # One quadratic form over the residuals of all streams, side by side.
        self._form = np.zeros((len(names) * count, len(names) * count))
        for a, b, factor in ledger.pairs():
            self._form[at[a], at[b]] = factor * ledger.look_up(a, b)(i, j)
        self._unknown = np.isnan(self._form).astype(np.float32)
        self._form = np.nan_to_num(self._form)
        self._share = sizes / max(float(sizes.sum()), 1e-300)

    def cost(self, computed: Sequence[int]) -> float:
        """The cost of computing these evaluations only; infinite where a forecast is not known."""
        skips = self._skips(computed)
        if skips is None:
            return np.inf
        at = skips[1] + skips[2]
        rows = np.concatenate([self._errors(name, skips) for name in self._ledger.tables], axis=1)
        products = rows @ self._form @ rows.T
        if self._unknown.any():
            used = (rows != 0).astype(np.float32)
            products = np.where(used @ self._unknown @ used.T > 0.5, 0.0, products)
        products *= self._sizes[at][:, None] * self._sizes[at][None, :]
        # |L_i|^2 after each skipped evaluation; it stays as it is until the next.
        square = np.maximum(np.diagonal(products.cumsum(axis=0).cumsum(axis=1)), 0.0)
        if not len(square):
            return 0.0
        lasts = np.diff(np.cumsum(self._share)[[*at[1:] - 1, self._count - 1]], prepend=np.cumsum(self._share)[at[0] - 1])
        return float(square[-1] + (square * lasts).sum())

    def _skips(self, computed: Sequence[int]) -> tuple[NDArray[np.int64], ...] | None:
        """(a, j, k) of every skipped evaluation; ``None`` where one may not be skipped so."""
        reach = self._ledger.reach
        found, p = [], -1
        for j, following in zip(computed, (*computed[1:], self._count), strict=True):
            if following - j > reach:
                return None
            found += [(j - p if p >= 0 else 0, j, k) for k in range(1, following - j)]
            p = j
        skips = tuple(np.array(found, dtype=np.int64).reshape(-1, 3).T)
        return None if self._closed[skips].any() else skips

    def _errors(self, stream: str, skips: tuple[NDArray[np.int64], ...]) -> Floats:
        """For each skipped evaluation a row of weights on the residuals, which gives the error there."""
        a, j, k = skips
        c = self._ledger.tables[stream].coefficient[a, j, k]
        row = np.arange(len(j))
        rows = np.zeros((len(j), self._count))
        rows[row, j + k] = 1.0
        rows[row, j] = -(1.0 + c)
        rows[row, j - a] += c  # c is 0 where a is
        return rows


def improve(
    computed: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    allowed: Callable[[Sequence[int]], bool],
    count: int,
) -> tuple[tuple[int, ...], float]:
    """Move single computed evaluations while that makes ``cost`` less; the result never costs more than the start."""
    best, least = tuple(computed), cost(computed)
    moved = True
    while moved:
        moved = False
        for place in range(1, len(best)):
            for candidate in neighbours(best, count, places=(place,)):
                if allowed(candidate) and (value := cost(candidate)) < least * (1 - 1e-9):
                    best, least, moved = candidate, value, True
                    break  # the places after this one are still to come
    return best, least


def neighbours(
    computed: Sequence[int], count: int, far: int = 2, places: Iterable[int] | None = None
) -> Iterator[tuple[int, ...]]:
    """Schedules with one computed evaluation (not the first; those of ``places`` only) moved by up to ``far``."""
    taken = set(computed)
    for place in range(1, len(computed)) if places is None else places:
        for move in (step for distance in range(1, far + 1) for step in (-distance, distance)):
            at = computed[place] + move
            if 1 <= at < count and at not in taken:
                yield tuple(sorted((*computed[:place], at, *computed[place + 1 :])))
