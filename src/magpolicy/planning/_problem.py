"""Where a plan is made: the source read at the run's noise levels, and what may be skipped there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration, StreamMoments
from magpolicy.calibration._forecast import check_measured
from magpolicy.calibration._gram import Floats
from magpolicy.catalog._presets import Preset, preset
from magpolicy.planning._error_tables import ErrorTables, factors_of
from magpolicy.planning._objective import LONGEST, step_sizes
from magpolicy.planning._target import PlanTarget
from magpolicy.policy._curve import Curve

# Ratios alone say nothing of the residual's direction, so the model of long gaps is not to be trusted.
MAX_SKIPS_OF_RATIOS = 4
# Radians by which the residual is taken to turn from the highest noise level to none. Without any turn, ratios that grow and
# then shrink look like no error at all; on the demo's model plans were up to 1.5 dB better with 1 than with 0 or 2.
TURN = 1.0


@frozen(kw_only=True, eq=False)
class PlanProblem:
    """A run to plan."""

    ledger: ErrorTables
    must: frozenset[int]
    """Evaluations that compute whatever the plan."""
    reach: int
    """Longest distance from one computed evaluation to the next."""
    sizes: Floats
    """Share of the run each evaluation speaks for, times the caller's weights."""
    why: str
    """What holds the number of computed evaluations up, for error messages."""
    first_step: int = 0
    together: bool = False
    """Whether errors are measured and a joint plan is made for the latent's way: its coefficients are then fitted together,
    else each for its own error."""

    @property
    def count(self) -> int:
        """Evaluations to plan."""
        return self.ledger.count


def plan_problem(
    source: Any, goal: PlanTarget, steps: int | None, sigmas: Sequence[float] | None, part: tuple[int, int] | None = None
) -> PlanProblem:
    """The run that ``source`` and the settings describe.

    Raises:
        ArgumentError: settings that do not fit the source or the run.
    """
    whole, known, measured = at_levels(source, steps, sigmas)
    together = _together(goal, measured, whole.steps)
    forecast = _forecast(goal, measured, together)
    first, stop = _checks.part(part, whole.steps)
    run = whole.part(first, stop) if (first, stop) != (0, whole.steps) else whole
    max_skips = _or(goal.max_skips, known.max_skips if known is not None else None)
    if max_skips is None and not measured:
        max_skips = MAX_SKIPS_OF_RATIOS
    reach = min(run.window + 1, run.steps, run.steps if max_skips is None else max_skips + 1)
    must, why = _must(goal, known, whole, sigmas)
    weights = np.ones(whole.steps) if goal.weights is None else _weights(tuple(goal.weights), whole.steps)
    factors = factors_of(goal.guidance, run)
    return PlanProblem(
        ledger=ErrorTables.of(run, max(reach, 1), forecast, 1.0 if goal.damping is None else goal.damping, factors),
        must=frozenset(i - first for i in must if first <= i < stop),
        reach=max(reach, 1),
        sizes=(step_sizes(whole.sigmas) * weights)[first:stop],
        why=", ".join([f"at most {max(reach, 1) - 1} skips in a row", *why]),
        first_step=first,
        together=together,
    )


def at_levels(source: Any, steps: int | None, sigmas: Sequence[float] | None) -> tuple[Calibration, Preset | None, bool]:
    """The source at the run's noise levels, its preset if it has one, and whether its errors are measured."""
    found = preset(source) if isinstance(source, str | Path) else source
    known = found if isinstance(found, Preset) else None
    measured = known.calibration if known is not None else found if isinstance(found, Calibration) else None
    if measured is not None:
        return measured.resample(steps=steps, sigmas=sigmas), known, True
    ratios = known.curve if known is not None else found
    return modelled(ratios if isinstance(ratios, Curve) else Curve(ratios), steps, sigmas), known, False


def _or(value: Any, other: Any) -> Any:
    return other if value is None else value


def _forecast(goal: PlanTarget, measured: bool, together: bool) -> str:
    check_measured(goal.forecast, measured)
    if goal.forecast == "second-order" and not together:
        raise ArgumentError(f"forecast='second-order' plans at most {LONGEST} steps; try forecast='calibrated'")
    return goal.forecast or ("hold" if not measured else "second-order" if together else "calibrated")


def _together(goal: PlanTarget, measured: bool, count: int) -> bool:
    """A bound on the error of each step is for that step's own forecast, and so are objectives that sum such errors."""
    if not measured or goal.batched is False or count > LONGEST:
        return False
    asked = goal.objective is not None or goal.power is not None
    along = goal.how.gather == "trajectory" if asked else goal.error is None
    return along or goal.forecast == "second-order"


def modelled(curve: Curve, steps: int | None, sigmas: Sequence[float] | None) -> Calibration:
    """Ratios alone as a calibration: residuals of the lengths they say, that turn evenly over noise level.

    With P the growth from j to i, reusing r_j at i has the relative error ``|1 - e^(1j t) / P|`` with t the angle turned by;
    at t=0 that is abs(1 - 1/P), the rule's own model (arXiv 2506.09045, section 4) but for what it is relative to.
    """
    levels = tuple(curve.levels_for(curve.steps if steps is None else _checks.steps(steps, example="28")))
    if sigmas is not None:
        levels = _checks.levels("sigmas", sigmas)
        if steps is not None and steps not in (len(levels), len(sigmas)):
            raise ArgumentError(f"steps={steps} contradicts sigmas with {len(levels)} levels; give one of them")
    run = curve.resample(sigmas=levels)
    angle = TURN * np.asarray(levels) / curve.levels[0]
    streams = {}
    for name, ratios in run.ratios.items():
        size = np.where(curve.covers(levels), np.cumprod(ratios), np.nan)
        gram = np.full((len(levels), len(levels)), np.nan)
        for back in range(len(levels)):
            before = slice(0, len(levels) - back)
            gram[back:, back] = size[back:] * size[before] * np.cos(angle[back:] - angle[before])
        nothing = (0.0,) * len(levels)
        streams[name] = StreamMoments(gram, ratios, nothing, nothing)
    return Calibration(sigmas=levels, streams=streams)


def _must(
    goal: PlanTarget, known: Preset | None, run: Calibration, sigmas: Sequence[float] | None
) -> tuple[set[int], list[str]]:
    """Evaluations that compute, and why, for messages."""
    count = run.steps
    retention = _or(goal.retention, known.retention if known is not None else None) or 0.0
    leading = int(retention * count + 0.5)
    forced = _checks.positions("forced", goal.forced, count)
    why = [f"{leading} leading steps of retention={retention:g}"] if leading > 1 else []
    if forced:
        why.append(f"{len(forced)} forced")
    outside = {i for i in range(count) if any(np.isnan(m.gram[i, 0]) for m in run.streams.values())}
    if outside:
        why.append(f"{len(outside)} outside the calibrated noise levels")
    switch = goal.expert_step
    if switch is None and known is not None:
        switch = known.expert_step(count, sigmas)
    experts = {switch} if switch is not None and switch < count else set()
    return {0, *range(leading), *forced, *outside, *experts}, why


def _weights(values: Sequence[Any], count: int) -> Floats:
    found = [_checks.number(f"weights[{i}]", value, 0, example="1.0") for i, value in enumerate(values)]
    if len(found) != count:
        raise ArgumentError(f"weights has {len(found)} values for {count} steps; give one a step")
    return np.asarray(found)


def alone(run: PlanProblem, stream: str) -> PlanProblem:
    """The same run with one stream only."""
    calibration = run.ledger.calibration
    one = evolve(calibration, streams={stream: calibration.streams[stream]}, cross={})
    factors = None if run.ledger.factors is None else {stream: run.ledger.factors[stream]}
    return evolve(run, ledger=ErrorTables(one, {stream: run.ledger.tables[stream]}, run.ledger.forecast, factors))
