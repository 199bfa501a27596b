"""Which skips are allowed in a run, and what each costs by an objective that adds up single errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from magpolicy.calibration._gram import Floats
from magpolicy.planning._error_tables import at_skipped, axes, mean_length
from magpolicy.planning._objective import LONGEST, OBJECTIVES, Objective, distance_weights, gap_costs, shares_of_run
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._shortest_path import Path, shortest_paths
from magpolicy.planning._trajectory import Trajectory


def forbidden_skips(problem: PlanProblem, bound: float | None = None) -> Any:
    """``[a, j, k]`` True where a skip is not allowed: it must compute, or its error is not known or above ``bound``."""
    forbidden: Any = False
    for name in problem.streams:
        error = problem.errors.relative(name)
        forbidden = forbidden | (np.isinf(error) if bound is None else error > bound)
    _, j, k = axes(forbidden.shape)
    return forbidden | np.isin(j + k, list(problem.must_compute))


def gap_costs_of(problem: PlanProblem, objective: Objective, forbidden: Any) -> Floats:
    """``[a, j, m]`` the cost of skipping everything from j to j+m; infinite where one of these skips is not allowed."""
    return gap_costs(_weighted_errors(problem, objective, forbidden), objective)


def cheapest_paths(
    problem: PlanProblem, objective: Objective, forbidden: Any, most: int, start: tuple[int, int] = (0, 0)
) -> dict[int, Path]:
    """By number of computed evaluations, up to ``most``, the choice that costs least; see :func:`shortest_paths`."""
    return shortest_paths(gap_costs_of(problem, objective, forbidden), most, start)


def _weighted_errors(problem: PlanProblem, objective: Objective, forbidden: Any) -> Floats:
    """``[a, j, k]`` the error of each skip as the objective counts it."""
    squared, size = problem.errors.combined()
    if objective.weight == "relative":
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(squared / at_skipped(size, squared.shape))
    else:
        share = shares_of_run(problem.step_sizes)
        # Over the mean length, so that the figure has no unit: a plan does not depend on it.
        with np.errstate(invalid="ignore"):
            error = at_skipped(share, squared.shape) * np.sqrt(squared / mean_length(size))
    weighted: Floats = np.where(forbidden | np.isnan(error), np.inf, error)
    return weighted


def ranking(problem: PlanProblem) -> Callable[[Sequence[int]], float]:
    """What orders schedules best: the expected cost of any choice of computed evaluations; infinite where it is not allowed."""
    forbidden = forbidden_skips(problem)
    if problem.count <= LONGEST:
        return distance_of(problem, forbidden).cost
    return _SumOfGaps(gap_costs_of(problem, OBJECTIVES["latent"], forbidden))


def distance_of(problem: PlanProblem, forbidden: Any) -> Trajectory:
    """The latent's distance from its way, as schedules are compared by it."""
    sizes = problem.step_sizes
    return Trajectory(problem.errors, sizes, forbidden, distance_weights(sizes))


class _SumOfGaps:
    """The cost of a choice of computed evaluations as a sum over its gaps."""

    def __init__(self, costs: Floats) -> None:
        self._costs = costs
        self._longest_gap, self._count = costs.shape[0] - 1, costs.shape[1]

    def __call__(self, computed: Sequence[int]) -> float:
        total, before = 0.0, 0
        for j, following in zip(computed, (*computed[1:], self._count), strict=True):
            gap = following - j
            if gap > self._longest_gap:
                return np.inf
            total += float(self._costs[before, j, gap])
            before = gap
        return total
