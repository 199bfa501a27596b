"""The best schedule for a speed: planned ahead, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from magpolicy._keywords import suggests
from magpolicy.catalog._source import PlanSource, SourceContent
from magpolicy.planning._objective import Objective
from magpolicy.planning._planner import solve, solve_all
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._schedule import Schedule


@suggests
def plan(
    source: PlanSource,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    speedup: float | str | None = None,
    computed: int | None = None,
    error: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    forced: Iterable[int] | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    objective: str | Objective | None = None,
    power: float | None = None,
    weights: Sequence[float] | None = None,
    batched: bool | None = None,
    guidance: float | Mapping[str, float] | None = None,
    expert_step: int | None = None,
    part: tuple[int, int] | None = None,
) -> Schedule:
    """The best schedule for a speed, with its forecast coefficients and the error it is expected to make at each step.

    Give one of ``speedup``, ``computed`` and ``error``. The plan is an exact shortest path over the last two computed steps,
    in milliseconds; ``objective="trajectory"`` improves several of these by local moves, each time with the forecasts that are
    best for the whole run, which takes some tenths of a second for 50 steps.

    >>> import magpolicy
    >>> print(magpolicy.plan("flux.1-dev", speedup=2.0))
    28 steps ...  14 computed  2.00x

    Args:
        source: a :class:`magpolicy.Calibration`, or a preset that has one: errors and forecasts are those measured. Or what
            :func:`magpolicy.simulate` takes: ratios say how long residuals are, and the general prior how they turn. Or
            ``None``, where nothing is known of the model: the prior takes the length for constant.
        steps: steps of the run; the calibrated number by default.
        sigmas: or the noise levels of its evaluations, in the order they are made (second-order samplers repeat some).
        speedup: evaluations over computed evaluations, at least; >= 1. Or a name: ``"quality"`` is 1.5, ``"balanced"`` 2 and
            ``"fast"`` 3.
        computed: or the number of computed evaluations.
        error: or a bound on the expected relative error of every skipped step; as few steps as possible compute.
        max_skips: how many steps in a row may be skipped; by default as many as inner products reach. What is published with
            ratios is for the rule, and does not bind a plan.
        retention: leading share of the run that always computes; 0 by default, whatever is published for the rule.
        forced: steps that always compute; negative ones count from the end.
        forecast: ``"hold"``; ``"linear"``; ``"calibrated"``, from the last two computed residuals; or ``"second-order"``, from
            the last three. By default ``"second-order"`` where the objective is ``"trajectory"``, which fits the coefficients
            of all steps together; else ``"calibrated"``, each step's coefficient for its own error.
        damping: factor on the linear forecast, 0 to 1.
        objective: what is minimized: ``"latent"``, ``"gap"``, ``"trajectory"``, ``"relative"`` or ``"peak"``;
            docs/explanation/forecast-and-planning.md explains them. By default ``"trajectory"`` for a joint plan with
            ``speedup`` or ``computed``, else ``"latent"``.
        power: the power of errors that is summed; the objective's by default, most often 2.
        weights: a factor on the error of each step.
        batched: one plan for all streams (the default), or with ``False`` one for each, with the target for all together.
        guidance: guidance scale s: two streams enter the latent with s and 1-s, and their errors with them. Or a mapping from
            stream to factor. By default the scale that the calibration was made with, if it says it.
        expert_step: first step of the second expert of a two-expert model; this step computes. A preset brings its own.
        part: first and last-but-one position, for a run of part of the steps; targets are of that part.

    Returns:
        A schedule for :class:`magpolicy.Session` and ``attach(schedule=...)``; ``.coefficients`` are followed by every
        adapter, ``.errors`` are the expected relative errors.

    Raises:
        ArgumentError: an argument is missing or out of range, or no schedule reaches the target; the message says which do.
    """
    target = PlanTarget(
        speedup=speedup, computed=computed, error=error, max_skips=max_skips, retention=retention, forced=forced,
        forecast=forecast, damping=damping, objective=objective, power=power, weights=weights, batched=batched,
        guidance=guidance, expert_step=expert_step,
    )  # fmt: skip
    target.check_target()
    if expert_step is not None:
        SourceContent.of(source).check_expert_step(expert_step)
    request = PlanRequest(source=source, target=target, steps=steps, sigmas=sigmas, part=part)
    return solve(request.problem(), target)


@suggests
def trade_off(
    source: PlanSource,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    forced: Iterable[int] | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    objective: str | Objective | None = None,
    power: float | None = None,
    weights: Sequence[float] | None = None,
    guidance: float | Mapping[str, float] | None = None,
    expert_step: int | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[Schedule, ...]:
    """The best plan for every possible number of computed steps, fewest first: error against speed.

    Arguments are those of :func:`plan`.

    Raises:
        ArgumentError: an argument is out of range.
    """
    target = PlanTarget(
        max_skips=max_skips, retention=retention, forced=forced, forecast=forecast, damping=damping, objective=objective,
        power=power, weights=weights, guidance=guidance, expert_step=expert_step,
    )  # fmt: skip
    request = PlanRequest(source=source, target=target, steps=steps, sigmas=sigmas, part=part)
    return solve_all(request.problem(), target)
