"""Schedules made better by small moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from magpolicy.planning._stopping import look_whether_to_stop


def evenly(count: int, computed: int) -> tuple[int, ...]:
    """So many of ``count`` evaluations, as evenly as can be; the last among them and the first two, for a forecast to begin."""
    return tuple(sorted({0, *(round(x) for x in np.linspace(min(1, count - 1), count - 1, computed - 1).tolist())}))


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
        for index in range(1, len(best)):
            look_whether_to_stop()
            for candidate in neighbours(best, count, indices=(index,)):
                if allowed(candidate) and (value := cost(candidate)) < least * (1 - 1e-9):
                    best, least, moved = candidate, value, True
                    break  # the ones after this one are still to come
    return best, least


def neighbours(
    computed: Sequence[int], count: int, far: int = 2, indices: Iterable[int] | None = None
) -> Iterator[tuple[int, ...]]:
    """Schedules with one computed evaluation (not the first; those of ``indices`` only) moved by up to ``far``."""
    taken = set(computed)
    for index in range(1, len(computed)) if indices is None else indices:
        for move in (step for distance in range(1, far + 1) for step in (-distance, distance)):
            at = computed[index] + move
            if 1 <= at < count and at not in taken:
                yield tuple(sorted((*computed[:index], at, *computed[index + 1 :])))
