"""From a run to plan and a target to a schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import define, evolve

from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.calibration._gram import Floats
from magpolicy.planning._error_tables import axes, mean_length, skipped_values
from magpolicy.planning._local_search import evenly, improve
from magpolicy.planning._objective import LONGEST, OBJECTIVES, Objective, gap_costs
from magpolicy.planning._problem import PlanProblem, alone
from magpolicy.planning._shortest_path import Path, shortest_paths
from magpolicy.planning._target import PlanTarget
from magpolicy.planning._trajectory import Trajectory, distance, fading
from magpolicy.schedule._coefficients import Check, Coefficients
from magpolicy.schedule._schedule import Schedule

Rows = Mapping[str, Sequence[int]]
"""Per stream the computed evaluations."""


def solve(run: PlanProblem, goal: PlanTarget) -> Schedule:
    """The best schedule of ``run`` for the goal's target.

    Raises:
        ArgumentError: the target cannot be had.
    """
    if goal.batched is False and len(run.ledger.tables) > 1:
        return schedule_of(run, _separate(run, goal))
    budget = goal.budget(run.count)
    paths = _paths(run, goal, run.count if budget is None else min(max(budget, 1), run.count))
    wanted = min(paths, default=None) if budget is None else budget
    if wanted not in paths:
        raise _infeasible(run, goal, wanted)
    return schedule_of(run, dict.fromkeys(run.ledger.tables, paths[wanted].computed))


def solve_all(run: PlanProblem, goal: PlanTarget) -> tuple[Schedule, ...]:
    """The best schedule for every number of computed evaluations that can be had, fewest first."""
    found = _paths(run, goal, run.count)
    return tuple(schedule_of(run, dict.fromkeys(run.ledger.tables, found[n].computed)) for n in sorted(found))


def replan(plan: Schedule, at: int, factor: float, extra: int | None) -> Schedule | None:
    """The rest of a joint plan after the computed evaluation ``at``, errors being ``factor`` times what was expected.

    As few evaluations compute as keep every error within the largest the plan accepted, but no fewer than it had left; with
    ``extra``, at most so many more, and the errors as small as these allow. ``None``: not to be had.
    """
    run = plan.plan_problem
    if run is None or len(set(plan.masks)) > 1:
        return None
    before = [i for i in range(at + 1) if plan.mask[i]]
    left = plan.computed - len(before) + 1
    most = run.count - at if extra is None else min(left + extra, run.count - at)
    start = (before[-1] - before[-2] if len(before) > 1 else 0, at)
    if start[0] > run.reach:
        return None
    shut = closed(run, max(_accepted(plan, run), 1e-12) / factor)
    how = OBJECTIVES["latent"]
    paths = shortest_paths(gap_costs(_weighted(run, how, shut), how), most, start)
    enough = [n for n in paths if n >= min(left, most)]
    if enough:
        path = paths[min(enough)]
    else:
        paths = shortest_paths(gap_costs(_weighted(run, how, closed(run, None)), how), most, start)
        if not paths:
            return None
        path = paths[max(paths)]
    rows = dict.fromkeys(run.ledger.tables, (*before[:-1], *path.computed))
    # What cancels as planned no longer does: each forecast is for its own error.
    return schedule_of(evolve(run, together=False), rows)


def _accepted(plan: Schedule, run: PlanProblem) -> float:
    """The largest error of a skip in the plan, each being forecast for itself: by this errors of other skips compare."""
    worst, p, j = 0.0, -1, 0
    for i, computes in enumerate(plan.mask):
        if not computes:
            at = (j - p if p >= 0 else 0), j, i - j
            worst = max(worst, *(float(run.ledger.relative(name)[at]) for name in run.ledger.tables))
        elif i:
            p, j = j, i
    return worst


def closed(run: PlanProblem, bound: float | None) -> Any:
    """True at each ``[a, j, k]`` that may not be skipped: not known, made to compute, or with an error above ``bound``."""
    shut: Any = False
    for name in run.ledger.tables:
        error = run.ledger.relative(name)
        shut = shut | (np.isinf(error) if bound is None else error > bound)
    _, j, k = axes(shut.shape)
    return shut | np.isin(j + k, list(run.must))


def _paths(run: PlanProblem, goal: PlanTarget, most: int) -> dict[int, Path]:
    how, shut = _objective_of(run, goal), closed(run, goal.error)
    if how.gather != "trajectory":
        return _exact(run, how, shut, most)
    if run.count > LONGEST:
        raise ArgumentError(
            f"objective='trajectory' plans at most {LONGEST} steps, this run has {run.count}; try objective='latent'"
        )
    starts = [_exact(run, OBJECTIVES[name], shut, most) for name in ("latent", "gap")]
    cost = functools.cache(_distance(run, shut).cost)
    wanted = [most] if goal.error is None and goal.targets else sorted(set().union(*starts))
    found = {}
    for length in wanted:
        candidates = {start[length].computed for start in starts if length in start}
        if candidates:
            even = evenly(run.count, length)
            candidates |= {even} if run.must.issubset(even) and np.isfinite(cost(even)) else set()
            improved = [improve(c, cost, run.must.issubset, run.count) for c in sorted(candidates)]
            found[length] = Path(*min(improved, key=lambda pair: pair[1]))
    return found


def _objective_of(run: PlanProblem, goal: PlanTarget) -> Objective:
    """The one asked for. If none was: errors along the whole run where they were measured, else each by itself.

    Of those tried on three models, "trajectory" came out best (docs/explanation/quality.md). What is only modelled tells
    nothing of errors that cancel; and for many lengths at once it takes long.
    """
    asked = goal.objective is not None or goal.power is not None
    return goal.how if asked or not run.together or not goal.targets else OBJECTIVES["trajectory"]


def _exact(run: PlanProblem, how: Objective, shut: Any, most: int) -> dict[int, Path]:
    return shortest_paths(gap_costs(_weighted(run, how, shut), how), most)


def _weighted(run: PlanProblem, how: Objective, shut: Any) -> Floats:
    """The error of each skip ``[a, j, k]`` as the objective counts it."""
    squared, size = run.ledger.combined()
    shape = squared.shape
    share = run.sizes / max(float(run.sizes.sum()), 1e-300)
    if how.weight == "relative":
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(squared / skipped_values(size, shape))
    else:
        # Over the mean length, so that the figure has no unit: a plan does not depend on it.
        with np.errstate(invalid="ignore"):
            error = skipped_values(share, shape) * np.sqrt(squared / mean_length(size))
    found: Floats = np.where(shut | np.isnan(error), np.inf, error)
    return found


def ranking(run: PlanProblem) -> Callable[[Sequence[int]], float]:
    """The expected cost of any joint schedule of a run, by what orders schedules best; infinite where it is not allowed."""
    return _distance(run, closed(run, None)).cost if run.count <= LONGEST else _Additive(run)


def _distance(run: PlanProblem, shut: Any) -> Trajectory:
    """What orders schedules."""
    return Trajectory(run.ledger, run.sizes, shut, distance(run.sizes))


def _fitted(run: PlanProblem, computed: Sequence[int]) -> Mapping[str, Mapping[int, Coefficients]]:
    """The forecasts of one schedule, all together."""
    shares = fading(run.ledger.calibration.sigmas)
    return Trajectory(run.ledger, run.sizes, closed(run, None), shares).fit(computed)


class _Additive:
    """The same by an objective that is a sum over gaps."""

    def __init__(self, run: PlanProblem) -> None:
        how = OBJECTIVES["latent"]
        self._gaps = gap_costs(_weighted(run, how, closed(run, None)), how)
        self._count, self._reach = run.count, run.ledger.reach

    def __call__(self, computed: Sequence[int]) -> float:
        total, a = 0.0, 0
        for j, following in zip(computed, (*computed[1:], self._count), strict=True):
            gap = following - j
            if gap > self._reach:
                return np.inf
            total += float(self._gaps[a, j, gap])
            a = gap
        return total


def _separate(run: PlanProblem, goal: PlanTarget) -> Rows:
    """One plan for each stream; the budget goes where it saves most."""
    names = list(run.ledger.tables)
    lanes = {name: alone(run, name) for name in names}
    paths = {name: _paths(lane, goal, run.count) for name, lane in lanes.items()}
    budget = goal.budget(run.count * len(names))
    if budget is None:
        if not all(paths.values()):
            raise _infeasible(run, goal, None)
        return {name: paths[name][min(paths[name])].computed for name in names}
    if goal.computed is not None:
        budget = goal.computed * len(names)
    scale = {name: _weight(run, name) if goal.how.weight == "latent" else 1.0 for name in names}
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for name in names:
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (cost, chosen) in best.items():
            for length, path in paths[name].items():
                value = cost + path.cost * scale[name] ** goal.how.power
                if value < following.get(spent + length, (np.inf,))[0]:
                    following[spent + length] = (value, (*chosen, length))
        best = following
    budget = min(budget, run.count * len(names))
    if budget not in best:
        raise _infeasible(run, goal, budget)
    return {name: paths[name][length].computed for name, length in zip(names, best[budget][1], strict=True)}


def _weight(run: PlanProblem, stream: str) -> float:
    """A stream's error in units of all streams together: costs of single streams are over their own mean length."""
    return float(np.sqrt(mean_length(alone(run, stream).ledger.combined()[1])))


def _infeasible(run: PlanProblem, goal: PlanTarget, wanted: int | None) -> ArgumentError:
    (name, value), *_ = goal.targets.items()
    if name == "error":
        return ArgumentError(f"error={value:g} cannot be kept ({run.why}); try a larger error")
    lanes = len(run.ledger.tables) if goal.batched is False else 1
    bare = evolve(goal, objective=OBJECTIVES["latent"], power=None)
    least = min(_paths(run, bare, run.count)) * lanes
    total = run.count * lanes
    example = (
        f"speedup={int(100 * total / least) / 100:g} or less" if name == "speedup" else f"computed={-(-least // lanes)} or more"
    )
    return ArgumentError(
        f"{name}={value:g} leaves {wanted} of {total} evaluations to compute, at least {least} must ({run.why}); try {example}"
    )


def schedule_of(run: PlanProblem, computed: Rows) -> Schedule:
    """The schedule that computes these evaluations, with coefficients, expected errors and what to compare at run time."""
    one, *others = {tuple(row) for row in computed.values()}
    fitted = _fitted(run, one) if run.together and not others else {}
    lanes = {name: _lane(run, name, row, fitted.get(name)) for name, row in computed.items()}
    schedule = Schedule.from_mask(
        {name: lane.mask for name, lane in lanes.items()},
        coefficients={name: lane.coefficients for name, lane in lanes.items()},
        errors={name: lane.errors for name, lane in lanes.items()},
        checks={name: lane.checks for name, lane in lanes.items()},
        first_step=run.first_step,
    )
    return evolve(schedule, plan_problem=run)


@define
class _Lane:
    """One stream of a schedule."""

    mask: list[bool]
    coefficients: list[Coefficients]
    errors: list[float]
    checks: list[Check | None]


def _lane(run: PlanProblem, stream: str, computed: Sequence[int], fitted: Mapping[int, Coefficients] | None) -> _Lane:
    table, relative, gram = run.ledger.tables[stream], run.ledger.relative(stream), run.ledger.gram(stream)
    taken = set(computed)
    count = run.count
    lane = _Lane([i in taken for i in range(count)], [()] * count, [0.0] * count, [None] * count)
    history: History = (0,)
    for i in range(1, run.count):
        j, k = history[0], i - history[0]
        a = j - history[1] if len(history) > 1 else 0
        known = k <= run.ledger.reach and np.isfinite(relative[a, j, k])
        c = float(table.coefficient[a, j, k]) if known else 0.0
        own: Check | None = ((c,) if c else (), float(relative[a, j, k])) if known else None
        if lane.mask[i]:
            lane.checks[i], history = own, computed_after(history, i)
        elif fitted is not None:
            lane.coefficients[i] = fitted[i]
            lane.errors[i] = _gram.error_of(gram, history, i, fitted[i])
        elif own is not None:
            lane.coefficients[i], lane.errors[i] = own
    return lane
