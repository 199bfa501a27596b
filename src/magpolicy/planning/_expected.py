"""What any schedule is expected to cost, by what a calibration measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from magpolicy._errors import ArgumentError
from magpolicy._keywords import suggests
from magpolicy.calibration import _gram
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.calibration._gram import Floats
from magpolicy.catalog._source import PlanSource, SourceContent
from magpolicy.planning._at_levels import at_levels
from magpolicy.planning._error_tables import ErrorTables, mean_length
from magpolicy.planning._guidance import stream_factors
from magpolicy.planning._objective import distance_weights, shares_of_run, step_sizes
from magpolicy.schedule._schedule import Schedule


@suggests
def expected_errors(
    source: PlanSource,
    schedule: Schedule,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
) -> Mapping[str, tuple[float, ...]]:
    """The relative error expected of each step of any schedule, per stream: 0 where it computes.

    This compares any two schedules by one measure, such as one of the published rule and a plan.

    Args:
        source: a calibration; with magnitude ratios alone, or ``None``, the errors are those that the general prior expects.
        schedule: what is computed, and how skipped residuals are forecast.
        steps: steps of the run; by default it has the schedule's steps, at the schedule's noise levels where these are known.
        sigmas: or its noise levels.

    Returns:
        for each stream of the source, one value for each step; infinite if the source says nothing about the step.

    Raises:
        ArgumentError: the schedule is of another length.
    """
    run, start = _run_of(source, schedule, steps, sigmas)
    expected = {}
    for name, moments in run.streams.items():
        index = schedule._row_of(name)
        errors = [0.0] * schedule.steps
        history: History = ()
        for at, computes in enumerate(schedule.masks[index]):
            if computes:
                history = computed_after(history, start + at)
            else:
                errors[at] = _gram.error_of(moments.gram, history, start + at, schedule.coefficients[index][at])
        expected[name] = tuple(errors)
    return expected


@suggests
def expected_distance(
    source: PlanSource,
    schedule: Schedule,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    guidance: float | Mapping[str, float] | None = None,
) -> float:
    """How far any schedule is expected to take the latent off its way: one figure to rank schedules of a run by.

    This is what a plan for a speedup makes least. Errors of the steps are vectors; each moves the latent by the step's size,
    and they add up or cancel. The squared distance at the end and its mean along the run are summed, with a tenth of the sum of
    the single errors' squares, which keeps errors that cancel from counting for nothing. 0 is no error; 1 is as far as a
    residual of mean length moves the latent over the whole run.

    Args:
        source: as in :func:`expected_errors`.
        schedule: likewise.
        steps: likewise.
        sigmas: likewise.
        guidance: as in :func:`magpolicy.plan`.

    Returns:
        The distance, >= 0; infinite if the source says nothing about a skipped step.

    Raises:
        ArgumentError: the schedule is of another length, or ``guidance`` does not fit the source.
    """
    run, start = _run_of(source, schedule, steps, sigmas)
    sizes = step_sizes(run.sigmas)[start : start + schedule.steps]
    part = run.part(start, start + schedule.steps)
    tables = ErrorTables.of(part, 1, "hold", damping=1.0, factors=stream_factors(guidance, part))
    form, length = tables.quadratic_form(), mean_length(tables.combined()[1])
    errors = np.concatenate([_errors_as_sums(schedule, name) for name in part.streams], axis=1)
    if any(np.isnan(form[np.ix_(used, used)]).any() for used in map(np.flatnonzero, errors)):
        return np.inf
    share = shares_of_run(sizes)
    weights = np.outer(share, share) * distance_weights(sizes)
    squared = float((weights * (errors @ np.nan_to_num(form) @ errors.T)).sum())
    return float(np.sqrt(max(squared, 0.0) / length))


def _errors_as_sums(schedule: Schedule, stream: str) -> Floats:
    """(N, N) the error of each step in one stream as a sum of its residuals; 0 where it computes."""
    index, rows = schedule._row_of(stream), np.zeros((schedule.steps, schedule.steps))
    history: History = ()
    for i, computes in enumerate(schedule.masks[index]):
        if computes:
            history = computed_after(history, i)
            continue
        rows[i, i] = 1.0
        weights = _gram.on_residuals(schedule.coefficients[index][i])
        for place, weight in zip(history, weights, strict=False):
            rows[i, place] -= weight
    return rows


def _run_of(
    source: PlanSource, schedule: Schedule, steps: int | None, sigmas: Sequence[float] | None
) -> tuple[Calibration, int]:
    """The calibration of the schedule's run, and the position there of the schedule's first step."""
    total = schedule.first_step + schedule.steps
    if steps is None and sigmas is None:
        if schedule.sigmas is not None and SourceContent.of(source).reads(schedule.sigmas):
            return at_levels(source, None, schedule.sigmas).calibration, 0
        steps = total
    run = at_levels(source, steps, sigmas).calibration
    if run.steps != total:
        raise ArgumentError(f"schedule has {total} steps, the run {run.steps}; make a schedule for it")
    return run, schedule.first_step
