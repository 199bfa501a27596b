"""From a run to plan and a target to a schedule."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from attrs import evolve

from magpolicy._errors import ArgumentError
from magpolicy.planning._local_search import evenly, improve
from magpolicy.planning._objective import LONGEST, OBJECTIVES, Objective
from magpolicy.planning._per_stream import share_budget
from magpolicy.planning._planned_schedule import joint_schedule, planned_schedule
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._shortest_path import Path
from magpolicy.planning._skip_costs import cheapest_paths, distance_of, forbidden_skips
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._schedule import Schedule

MANY_STEPS = 80
"""Steps above which one start is improved alone, the best: at 100 steps it takes a fifth of the time, for plans 0.1 % worse."""


class TargetError(ArgumentError):
    """No schedule reaches the target."""

    __module__ = "magpolicy"

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least
        """The smallest number of computed steps that can be had."""


def solve(problem: PlanProblem, target: PlanTarget) -> Schedule:
    """The best schedule of a run for the target.

    Raises:
        TargetError: the target cannot be had.
    """
    if target.batched is False and len(problem.streams) > 1:
        return _solve_streams(problem, target)
    budget = target.budget(problem.count)
    paths = _paths(problem, target, problem.count if budget is None else min(max(budget, 1), problem.count))
    wanted = min(paths, default=None) if budget is None else budget
    if wanted not in paths:
        raise _infeasible(problem, target, wanted)
    return joint_schedule(problem, paths[wanted].computed)


def solve_all(problem: PlanProblem, target: PlanTarget) -> tuple[Schedule, ...]:
    """The best schedule for every number of computed evaluations that can be had, fewest first."""
    paths = _paths(problem, target, problem.count)
    return tuple(joint_schedule(problem, paths[length].computed) for length in sorted(paths))


def _solve_streams(problem: PlanProblem, target: PlanTarget) -> Schedule:
    """One plan for each stream, the budget shared."""
    paths = {name: _paths(problem.of_stream(name), target, problem.count) for name in problem.streams}
    total = problem.count * len(paths)
    budget = target.budget(total)
    if budget is None:
        if not all(paths.values()):
            raise _infeasible(problem, target, None)
        return planned_schedule(problem, {name: choices[min(choices)].computed for name, choices in paths.items()})
    if target.computed is not None:
        budget = target.computed * len(paths)
    budget = min(budget, total)
    chosen = share_budget(problem, target.chosen_objective, paths, budget)
    if chosen is None:
        raise _infeasible(problem, target, budget)
    return planned_schedule(problem, chosen)


def _paths(problem: PlanProblem, target: PlanTarget, most: int) -> dict[int, Path]:
    """By number of computed evaluations, up to ``most``, the best choice of them; numbers not asked for may be left out."""
    objective, forbidden = _objective(problem, target), forbidden_skips(problem, target.error)
    if objective.gather != "trajectory":
        return cheapest_paths(problem, objective, forbidden, most)
    if problem.count > LONGEST:
        raise ArgumentError(
            f"objective='trajectory' plans at most {LONGEST} steps, this run has {problem.count}; try objective='latent'"
        )
    return _trajectory_paths(problem, forbidden, most, every=target.error is not None or not target.targets)


def _objective(problem: PlanProblem, target: PlanTarget) -> Objective:
    """What is made least. If the caller did not say: errors along the whole run, or each by itself for many lengths at once.

    Of those tried on three models, "trajectory" came out best (docs/explanation/quality.md); it takes longer.
    """
    if target.names_objective or not problem.fit_together or not target.targets:
        return target.chosen_objective
    return OBJECTIVES["trajectory"]


def _trajectory_paths(problem: PlanProblem, forbidden: Any, most: int, every: bool) -> dict[int, Path]:
    """Choices that a local search found from the plans of simpler objectives: of ``every`` length, or of ``most`` alone."""
    starts = [cheapest_paths(problem, OBJECTIVES[name], forbidden, most) for name in ("latent", "gap")]
    cost = functools.cache(distance_of(problem, forbidden).cost)
    must = problem.must_compute
    paths = {}
    for length in sorted(set().union(*starts)) if every else [most]:
        candidates = {start[length].computed for start in starts if length in start}
        if candidates:
            even = evenly(problem.count, length)
            candidates |= {even} if must.issubset(even) and np.isfinite(cost(even)) else set()
            if problem.count > MANY_STEPS:
                candidates = {min(sorted(candidates), key=cost)}
            improved = [improve(candidate, cost, must.issubset, problem.count) for candidate in sorted(candidates)]
            paths[length] = Path(*min(improved, key=lambda pair: pair[1]))
    return paths


def _infeasible(problem: PlanProblem, target: PlanTarget, wanted: int | None) -> TargetError:
    """The error that says what can be had in place of the target."""
    (name, value), *_ = target.targets.items()
    if name == "error":
        return TargetError(f"error={value:g} cannot be kept ({problem.limits}); try a larger error", problem.count)
    plans = len(problem.streams) if target.batched is False else 1
    if name == "computed" and value > problem.count:
        return TargetError(
            f"computed={value:g} is more than the {problem.count} evaluations of the run; try computed={problem.count} or less",
            problem.count,
        )
    simplest = evolve(target, objective=OBJECTIVES["latent"], power=None)
    least = min(_paths(problem, simplest, problem.count)) * plans
    total = problem.count * plans
    example = (
        f"speedup={int(100 * total / least) / 100:g} or less" if name == "speedup" else f"computed={-(-least // plans)} or more"
    )
    return TargetError(
        f"{name}={value:g} leaves {wanted} of {total} evaluations to compute, at least {least} must ({problem.limits}); "
        f"try {example}",
        -(-least // plans),
    )
