"""A plan for any run: where a target cannot be had, the nearest one that can.

A target is set once and holds for all runs of a model, and some are short: a server's warm-up of one step, image to image of
low strength. Such a run is planned as near to the target as it allows.
"""

from __future__ import annotations

from attrs import evolve

from magpolicy.planning._planner import TargetError, solve
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._schedule import Schedule

FEWEST = 2
"""Steps that compute at least where a speedup is asked for: a picture of one step's residual is none."""


def solve_nearest(problem: PlanProblem, target: PlanTarget) -> tuple[Schedule, str]:
    """The best schedule of a run for the target, or for the nearest number of computed evaluations that can be had.

    Returns:
        the schedule, and in words how it differs from the target; empty where it does not.
    """
    fewest = min(FEWEST, problem.count)
    if target.speedup is not None and (target.budget(problem.count) or 0) < fewest:
        return _with_more(problem, target, fewest)
    try:
        return solve(problem, target), ""
    except TargetError as error:
        return _with_more(problem, target, error.least)


def _with_more(problem: PlanProblem, target: PlanTarget, computed: int) -> tuple[Schedule, str]:
    (name, value), *_ = target.targets.items()
    try:
        schedule = solve(problem, evolve(target, speedup=None, error=None, computed=computed))
    except TargetError as error:  # more than FEWEST must
        schedule = solve(problem, evolve(target, speedup=None, error=None, computed=error.least))
    return schedule, f"{name}={value:g} cannot be had in a run of {problem.count} steps: {schedule.computed} of them compute"
