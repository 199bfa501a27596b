"""How far a schedule takes the latent off its way, to first order, and moves that make it less.

The error of a skipped step is added to the latent and stays there. Errors of different gaps are vectors that may add up or
cancel, so the distance at the end is not a sum over gaps; it is a quadratic form of the inner products that are known anyway:

    L_i = sum of h_t d_t over skipped t <= i,    cost = |L_last|^2 + sum_i h_i |L_i|^2 / sum_i h_i

with d_t the combined error at t and h_t the step size. It has no exact shortest path; a plan of another objective is taken and
computed steps are moved while that helps. Inner products beyond the window count as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from magpolicy._gram import Floats
from magpolicy._ledger import Ledger

LONGEST = 200  # steps; the quadratic form takes steps^3 operations, and more steps gain nothing from it


class Trajectory:
    """Scores schedules of one run by the latent's distance from its way."""

    def __init__(self, ledger: Ledger, sizes: Floats, closed: NDArray[np.bool_]) -> None:
        self._ledger, self._sizes, self._closed = ledger, sizes, closed
        count = ledger.count
        i, j = np.arange(count)[:, None], np.arange(count)[None, :]
        self._count = count
        pairs = ledger.pairs() if ledger.factors is not None else [(n, n, 1.0 / len(ledger.tables)) for n in ledger.tables]
        self._forms = [(a, b, factor * np.nan_to_num(ledger.look_up(a, b)(i, j))) for a, b, factor in pairs]

    def cost(self, computed: Sequence[int]) -> float:
        """The cost of computing these evaluations only; infinite where a forecast is not known."""
        share = self._sizes / max(float(self._sizes.sum()), 1e-300)
        skips = self._skips(computed)
        if skips is None:
            return np.inf
        sums = {name: np.cumsum(self._sizes[:, None] * self._errors(name, skips), axis=0) for name in self._ledger.tables}
        square = np.zeros(self._count)
        for first, second, form in self._forms:
            square += ((sums[first] @ form) * sums[second]).sum(axis=1)
        square = np.maximum(square, 0.0)
        return float(square[-1] + (square * share).sum())

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
        """Rows of weights on the residuals that give the error at each evaluation."""
        a, j, k = skips
        c = self._ledger.tables[stream].coefficient[a, j, k]
        rows = np.zeros((self._count, self._count))
        rows[j + k, j + k] = 1.0
        rows[j + k, j] = -(1.0 + c)
        rows[j + k, j - a] += c  # c is 0 where a is
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
        for candidate in neighbours(best, count):
            if allowed(candidate) and (value := cost(candidate)) < least * (1 - 1e-9):
                best, least, moved = candidate, value, True
                break
    return best, least


def neighbours(computed: Sequence[int], count: int, far: int = 2) -> Iterator[tuple[int, ...]]:
    """Schedules with one computed evaluation (not the first) moved by up to ``far``."""
    taken = set(computed)
    for place in range(1, len(computed)):
        for move in (step for distance in range(1, far + 1) for step in (-distance, distance)):
            at = computed[place] + move
            if 1 <= at < count and at not in taken:
                yield tuple(sorted((*computed[:place], at, *computed[place + 1 :])))
