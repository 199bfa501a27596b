"""The cheapest way through a run for every number of computed evaluations: an exact shortest path."""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from magpolicy.calibration._gram import Floats
from magpolicy.planning._stopping import look_whether_to_stop


@frozen
class Path:
    """The cheapest choice of one number of computed evaluations."""

    computed: tuple[int, ...]
    cost: float


def shortest_paths(costs: Floats, most: int, start: tuple[int, int] = (0, 0)) -> dict[int, Path]:
    """The cheapest path of each length up to ``most``; lengths that cannot be had are left out.

    A state is the last two computed evaluations; going from j to the next computed one j+m costs what the m-1 skipped between
    them cost. The first evaluation is always computed.

    Args:
        costs: ``[a, j, m]``: the gap from j to j+m where the evaluation computed before j is j-a (a=0: there is none); j+m=N
            is the end of the run. Infinite where not allowed. a and m have the same extent.
        most: largest number of computed evaluations wanted, counted from the start.
        start: (a, j) of the evaluation that is computed already: the run's first one, or where the rest is planned again.
    """
    reach, count = costs.shape[0] - 1, costs.shape[1]
    j, m = np.meshgrid(np.arange(count), np.arange(1, reach + 1), indexing="ij")
    inside = j + m < count
    into = (m[inside], (j + m)[inside])
    last = np.arange(max(0, count - reach), count)  # evaluations from which the end is in reach
    state = np.full((reach + 1, count), np.inf)
    state[start] = 0.0
    choices: list[NDArray[np.int64]] = []
    paths: dict[int, Path] = {}
    for length in range(1, most + 1):
        look_whether_to_stop()
        reached = state[:, :, None] + costs[:, :, 1:]
        choice = reached.argmin(axis=0)
        value = np.take_along_axis(reached, choice[None], axis=0)[0]
        choices.append(choice)
        ends = value[last, count - last - 1]
        if np.isfinite(ends).any():
            end = int(last[ends.argmin()])
            paths[length] = Path(_back(choices, end), float(ends.min()))
        state = np.full_like(state, np.inf)
        state[into] = value[inside]
    return paths


def _back(choices: list[NDArray[np.int64]], end: int) -> tuple[int, ...]:
    """The computed evaluations that lead to ``end`` as the last one, the start first."""
    computed = []
    j, m = end, choices[0].shape[0] - end
    for choice in reversed(choices):
        computed.append(j)
        m = int(choice[j, m - 1])
        j -= m
    return tuple(reversed(computed))
