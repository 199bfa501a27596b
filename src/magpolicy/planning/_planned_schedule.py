"""From chosen evaluations to a schedule: its forecasts, the errors expected of them, and what to compare at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from attrs import define

from magpolicy.calibration import _gram
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.planning._objective import fading_weights
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._skip_costs import forbidden_skips
from magpolicy.planning._trajectory import Trajectory
from magpolicy.schedule._coefficients import Check, Coefficients
from magpolicy.schedule._schedule import Schedule


def joint_schedule(problem: PlanProblem, computed: Sequence[int]) -> Schedule:
    """The schedule in which every stream computes these evaluations."""
    return planned_schedule(problem, dict.fromkeys(problem.streams, computed))


def planned_schedule(problem: PlanProblem, computed: Mapping[str, Sequence[int]]) -> Schedule:
    """The schedule in which each stream computes these evaluations."""
    one, *others = {tuple(evaluations) for evaluations in computed.values()}
    fitted = _fitted_together(problem, one) if problem.fit_together and not others else {}
    rows = {name: _row(problem, name, evaluations, fitted.get(name)) for name, evaluations in computed.items()}
    return Schedule.from_mask(
        {name: row.mask for name, row in rows.items()},
        coefficients={name: row.coefficients for name, row in rows.items()},
        errors={name: row.errors for name, row in rows.items()},
        checks={name: row.checks for name, row in rows.items()},
        first_step=problem.first_step,
        sigmas=problem.sigmas,
    )


def _fitted_together(problem: PlanProblem, computed: Sequence[int]) -> Mapping[str, Mapping[int, Coefficients]]:
    """Per stream and skip the coefficients that leave the latent the least off its way, all skips together."""
    weights = fading_weights(problem.errors.calibration.sigmas)
    return Trajectory(problem.errors, problem.step_sizes, forbidden_skips(problem), weights).fit(computed)


@define
class _Row:
    """One stream of a schedule, a value an evaluation."""

    mask: list[bool]
    coefficients: list[Coefficients]
    errors: list[float]
    checks: list[Check | None]


def _row(problem: PlanProblem, stream: str, computed: Sequence[int], fitted: Mapping[int, Coefficients] | None) -> _Row:
    """A stream that computes these evaluations, with ``fitted`` coefficients, or those best for each skip itself."""
    count, chosen, gram = problem.count, set(computed), problem.errors.gram(stream)
    row = _Row([i in chosen for i in range(count)], [()] * count, [0.0] * count, [None] * count)
    history: History = (0,)
    for i in range(1, count):
        best = _best_forecast(problem, stream, history, i)
        if row.mask[i]:
            row.checks[i], history = best, computed_after(history, i)
        elif fitted is not None:
            row.coefficients[i] = fitted[i]
            row.errors[i] = _gram.error_of(gram, history, i, fitted[i])
        elif best is not None:
            row.coefficients[i], row.errors[i] = best
    return row


def _best_forecast(problem: PlanProblem, stream: str, history: History, i: int) -> Check | None:
    """The forecast of evaluation ``i`` that is best for itself, and its relative error; ``None`` where not known."""
    relative, coefficient = problem.errors.relative(stream), problem.errors.forecasts[stream].coefficient
    j, k = history[0], i - history[0]
    a = j - history[1] if len(history) > 1 else 0
    if max(a, k) > problem.errors.longest_gap or not np.isfinite(relative[a, j, k]):
        return None
    c = float(coefficient[a, j, k])
    return ((c,) if c else ()), float(relative[a, j, k])
