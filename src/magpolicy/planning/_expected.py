"""What any schedule is expected to cost, by what a calibration measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._forecast import History, computed_after
from magpolicy.planning._problem import at_levels
from magpolicy.run._config import Source
from magpolicy.schedule._schedule import Schedule


def expected_errors(
    source: Source,
    schedule: Schedule,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
) -> Mapping[str, tuple[float, ...]]:
    """The relative error expected of each step of any schedule, per stream: 0 where it computes.

    Schedules of different makers compare by one measure this way, such as the published rule's and a plan.

    Args:
        source: a calibration; of magnitude ratios alone the errors are modelled.
        schedule: what is computed, and how skipped residuals are forecast.
        steps: steps of the run; the schedule's by default.
        sigmas: or its noise levels.

    Returns:
        per stream of the source one value a step; infinite where the source says nothing.

    Raises:
        ArgumentError: the schedule is of another length.
    """
    total = schedule.first_step + schedule.steps
    run = at_levels(source, total if steps is None and sigmas is None else steps, sigmas)[0]
    if run.steps != total:
        raise ArgumentError(f"schedule has {total} steps, the run {run.steps}; make a schedule for it")
    found = {}
    for name, moments in run.streams.items():
        place = schedule.streams.index(name) if name in schedule.streams else 0
        errors = [0.0] * schedule.steps
        history: History = ()
        for at, computes in enumerate(schedule.masks[place]):
            i = at + schedule.first_step
            if computes:
                history = computed_after(history, i)
            else:
                errors[at] = _gram.error_of(moments.gram, history, i, schedule.coefficients[place][at])
        found[name] = tuple(errors)
    return found
