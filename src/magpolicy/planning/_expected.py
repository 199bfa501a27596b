"""What any schedule is expected to cost, by what a calibration measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.catalog._source import PlanSource, SourceContent
from magpolicy.planning._at_levels import at_levels
from magpolicy.schedule._schedule import Schedule


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


def _run_of(
    source: PlanSource, schedule: Schedule, steps: int | None, sigmas: Sequence[float] | None
) -> tuple[Calibration, int]:
    """The calibration of the schedule's run, and the position there of the schedule's first step."""
    total = schedule.first_step + schedule.steps
    if steps is None and sigmas is None:
        if schedule.sigmas is not None and SourceContent.of(source).levels_known:
            return at_levels(source, None, schedule.sigmas).calibration, 0
        steps = total
    run = at_levels(source, steps, sigmas).calibration
    if run.steps != total:
        raise ArgumentError(f"schedule has {total} steps, the run {run.steps}; make a schedule for it")
    return run, schedule.first_step
