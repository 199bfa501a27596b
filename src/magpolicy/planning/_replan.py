"""The rest of a run planned again, after errors turned out larger than expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from magpolicy.planning._objective import OBJECTIVES
from magpolicy.planning._planned_schedule import joint_schedule
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._skip_costs import cheapest_paths, forbidden_skips
from magpolicy.schedule._schedule import Schedule


def replan(problem: PlanProblem, plan: Schedule, at: int, factor: float, extra: int | None) -> Schedule | None:
    """The plan with its rest after the computed evaluation ``at`` made anew, errors being ``factor`` times what was expected.

    As few evaluations compute as keep every error within the largest the plan accepted, but no fewer than it had left; with
    ``extra``, at most so many more, and the errors as small as these allow.

    Returns:
        the schedule of the whole run; ``None`` where it is not to be had, or the plan is not one for all streams together.
    """
    if len(set(plan.masks)) > 1:
        return None
    before = [i for i in range(at + 1) if plan.mask[i]]
    left = plan.computed - len(before) + 1
    most = problem.count - at if extra is None else min(left + extra, problem.count - at)
    gap = before[-1] - before[-2] if len(before) > 1 else 0
    rest = _rest(problem, _largest_accepted(plan, problem) / factor, (gap, at), min(left, most), most)
    if rest is None:
        return None
    # What cancels as planned no longer does: each forecast is for its own error.
    return _with_beginning(joint_schedule(evolve(problem, fit_together=False), (*before[:-1], *rest)), plan, at)


def _with_beginning(schedule: Schedule, plan: Schedule, at: int) -> Schedule:
    """``schedule`` with what ``plan`` states of the steps up to ``at``, which are over."""
    indices = [plan._row_of(name) for name in schedule.streams]

    def joined(ours: Sequence[tuple[Any, ...]], theirs: Sequence[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
        return tuple((*theirs[index][: at + 1], *row[at + 1 :]) for index, row in zip(indices, ours, strict=True))

    return evolve(
        schedule,
        coefficients=joined(schedule.coefficients, plan.coefficients),
        modelled=joined(schedule.modelled, plan.modelled),
        checks=joined(schedule.checks, plan.checks),
    )


def _rest(problem: PlanProblem, bound: float, start: tuple[int, int], least: int, most: int) -> tuple[int, ...] | None:
    """``least`` to ``most`` evaluations that compute from ``start`` on, as few as keep errors within ``bound``.

    Where ``most`` cannot keep them, so many, the errors as small as these allow.
    """
    if start[0] > problem.longest_gap:
        return None
    objective = OBJECTIVES["latent"]
    paths = cheapest_paths(problem, objective, forbidden_skips(problem, bound), most, start)
    enough = [length for length in paths if length >= least]
    if enough:
        return paths[min(enough)].computed
    paths = cheapest_paths(problem, objective, forbidden_skips(problem), most, start)
    return paths[max(paths)].computed if paths else None


def _largest_accepted(plan: Schedule, problem: PlanProblem) -> float:
    """The largest error of a skip in the plan, each being forecast for itself: by this errors of other skips compare."""
    worst, before, last = 1e-12, -1, 0
    for i, computes in enumerate(plan.mask):
        if not computes:
            skip = (last - before if before >= 0 else 0), last, i - last
            known = max(skip[0], skip[2]) <= problem.longest_gap
            errors = [float(problem.errors.relative(name)[skip]) for name in problem.streams] if known else []
            worst = max(worst, *filter(math.isfinite, errors), 0.0)
        elif i:
            before, last = last, i
    return worst
