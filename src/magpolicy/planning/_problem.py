"""What a plan has to solve: the errors of every possible skip in a run, and what may be skipped there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats
from magpolicy.catalog._source import PlanSource
from magpolicy.planning._at_levels import SourceAtLevels, at_levels
from magpolicy.planning._error_tables import ErrorTables
from magpolicy.planning._guidance import stream_factors
from magpolicy.planning._objective import LONGEST, hedged, step_sizes
from magpolicy.planning._target import PlanTarget


@frozen(kw_only=True)
class PlanRequest:
    """What a plan is made from and for. It is small and makes the problem, which is large, when that is needed."""

    source: PlanSource
    target: PlanTarget
    steps: int | None = None
    sigmas: Sequence[float] | None = None
    """The run's noise levels, in place of ``steps``."""
    part: tuple[int, int] | None = None
    """First and last-but-one position, for a run of part of the steps."""

    def problem(self) -> PlanProblem:
        """The run to plan.

        Raises:
            ArgumentError: settings that do not fit the source or the run.
        """
        return _problem(self, at_levels(self.source, self.steps, self.sigmas, self.target.expert_step))


@frozen(kw_only=True, eq=False)
class PlanProblem:
    """A run to plan."""

    errors: ErrorTables
    """The errors of every possible skip."""
    must_compute: frozenset[int]
    """Evaluations that compute whatever the plan."""
    step_sizes: Floats
    """(N,) share of the run that each evaluation speaks for, hedged where the source is a guess, times the caller's weights."""
    limits: str
    """What holds the number of computed evaluations up, for error messages."""
    sigmas: tuple[float, ...] | None
    """(N,) noise level of each evaluation; ``None``: only assumed."""
    first_step: int
    """Position of the first evaluation in the full run."""
    fit_together: bool
    """Whether the coefficients of all skips are fitted together, for the least distance of the latent from its way; else each
    is the best for its own step's error."""

    @property
    def count(self) -> int:
        """N, the number of evaluations to plan."""
        return self.errors.count

    @property
    def longest_gap(self) -> int:
        """Longest distance from one computed evaluation to the next."""
        return self.errors.longest_gap

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams to plan."""
        return tuple(self.errors.forecasts)

    def of_stream(self, stream: str) -> PlanProblem:
        """The same run with one stream only."""
        return evolve(self, errors=self.errors.of_stream(stream))


def _problem(request: PlanRequest, source: SourceAtLevels) -> PlanProblem:
    target, whole = request.target, source.calibration
    first, stop = _checks.part(request.part, whole.steps)
    run = whole.part(first, stop) if (first, stop) != (0, whole.steps) else whole
    together = _fits_together(target, whole.steps)
    must, reasons = _must_compute(target, source)
    gap = _longest_gap(target, source, run, len({i for i in must if first <= i < stop}))
    sizes = hedged(step_sizes(whole.sigmas)) if source.is_a_guess else step_sizes(whole.sigmas)
    weights = np.ones(whole.steps) if target.weights is None else _weights(tuple(target.weights), whole.steps)
    return PlanProblem(
        errors=ErrorTables.of(
            run,
            gap,
            _forecast(target, together),
            damping=1.0 if target.damping is None else target.damping,
            factors=stream_factors(target.guidance, run),
        ),
        must_compute=frozenset(i - first for i in must if first <= i < stop),
        step_sizes=(sizes * weights)[first:stop],
        limits=", ".join([f"at most {gap - 1} skips in a row", *reasons]),
        sigmas=run.sigmas if source.levels_known else None,
        first_step=first,
        fit_together=together,
    )


def _fits_together(target: PlanTarget, count: int) -> bool:
    """A bound on the error of each step is for that step's own forecast, and so are objectives that sum such errors."""
    if target.batched is False or count > LONGEST:
        return False
    by_distance = target.chosen_objective.gather == "trajectory" if target.names_objective else target.error is None
    return by_distance or target.forecast == "second-order"


def _forecast(target: PlanTarget, together: bool) -> str:
    if target.forecast == "second-order" and not together:
        raise ArgumentError(f"forecast='second-order' plans at most {LONGEST} steps; try forecast='calibrated'")
    return target.forecast or ("second-order" if together else "calibrated")


LONG_RUN = 40
"""Steps above which gaps are bounded: tables of all gaps grow as steps cubed, 650 MB for 200 steps."""


def _longest_gap(target: PlanTarget, source: SourceAtLevels, run: Calibration, fixed: int) -> int:
    """The longest distance from one computed evaluation to the next; ``fixed`` evaluations compute whatever the plan."""
    max_skips: int | None = _first_given(target.max_skips, source.bound and source.bound.max_skips)
    widest = max(min(run.window + 1, run.steps, run.steps if max_skips is None else max_skips + 1), 1)
    budget, free = target.budget(run.steps), run.steps - fixed
    if run.steps <= LONG_RUN or target.batched is False or budget is None or budget - fixed < 1:
        return widest
    # No plan chooses a gap of six times the mean one: at 1.5x to 3x the longest was 7 (benchmarks/planning.py).
    return min(widest, int(6 * free / (budget - fixed)) + 6)


def _must_compute(target: PlanTarget, source: SourceAtLevels) -> tuple[set[int], list[str]]:
    """Evaluations that compute, and why, for messages."""
    run, switch = source.calibration, source.expert_step
    count = run.steps
    retention = _first_given(target.retention, source.bound and source.bound.retention) or 0.0
    leading = int(retention * count + 0.5)
    forced = _checks.positions("forced", target.forced, count)
    outside = {i for i in range(count) if any(np.isnan(moments.gram[i, 0]) for moments in run.streams.values())}
    reasons = [f"{leading} leading steps of retention={retention:g}"] if leading > 1 else []
    if forced:
        reasons.append(f"{len(forced)} forced")
    if outside:
        reasons.append(f"{len(outside)} outside the calibrated noise levels")
    return {0, *range(leading), *forced, *outside, *([switch] if switch is not None and switch < count else [])}, reasons


def _first_given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _weights(values: Sequence[Any], count: int) -> Floats:
    weights = [_checks.number(f"weights[{i}]", value, 0, example="1.0") for i, value in enumerate(values)]
    if len(weights) != count:
        raise ArgumentError(f"weights has {len(weights)} values for {count} steps; give one a step")
    return np.asarray(weights)
