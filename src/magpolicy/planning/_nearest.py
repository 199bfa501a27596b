"""A plan for any run: where a target cannot be had, the nearest one that can.

A target is set once and holds for all runs of a model, and some are short: a server's warm-up of one step, image to image of
low strength. Such a run is planned as near to the target as it allows.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve

from magpolicy import _checks
from magpolicy.planning._objective import LONGEST
from magpolicy.planning._planner import TargetError, solve
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._schedule import Schedule
from magpolicy.schedule._stretch import FEWEST


def fitted(target: PlanTarget, steps: int) -> tuple[PlanTarget, str]:
    """The target for a run of ``steps`` steps, without what only other runs have; and in words what was left out."""
    changes: dict[str, Any] = {}
    forced, outside = _checks.inside("forced", target.forced, steps)
    words = [outside] if outside else []
    if outside:
        changes["forced"] = forced
    if steps > LONGEST:
        for name, value in {"objective": "trajectory", "forecast": "second-order"}.items():
            if getattr(target, name) == value:
                changes[name] = None
                words.append(f"{name}={value!r} plans at most {LONGEST} steps, this run has {steps}: it is left out")
    return (evolve(target, **changes), "; ".join(words)) if changes else (target, "")


def solve_nearest(problem: PlanProblem, target: PlanTarget) -> tuple[Schedule, str]:
    """The best schedule of a run for the target, or for the nearest number of computed evaluations that can be had.

    Returns:
        the schedule, and in words how it differs from the target; empty where it does not.
    """
    fewest = min(FEWEST, problem.count)
    if target.speedup is not None and (target.budget(problem.count) or 0) < fewest:
        return _with_more(problem, target, fewest)
    try:
        schedule = solve(problem, target)
    except TargetError as error:
        return _with_more(problem, target, max(error.least, min(target.computed or 0, problem.count)))
    if target.error is not None and schedule.computed < fewest:
        return _with_more(problem, target, fewest)
    return schedule, ""


def _with_more(problem: PlanProblem, target: PlanTarget, computed: int) -> tuple[Schedule, str]:
    (name, value), *_ = target.targets.items()
    try:
        schedule = solve(problem, evolve(target, speedup=None, error=None, computed=computed))
    except TargetError as error:  # more than FEWEST must
        schedule = solve(problem, evolve(target, speedup=None, error=None, computed=error.least))
    run = f"{problem.count} steps" if problem.count > 1 else "one step"
    which = f"{schedule.computed} of them compute" if schedule.computed < problem.count else "every step computes"
    return schedule, f"{name}={value:g} cannot be had in a run of {run}: {which}"
