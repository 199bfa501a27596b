"""What was decided in a run, entry by entry, and the same as rows of a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from magpolicy._errors import ArgumentError
from magpolicy.policy._decision import Decision
from magpolicy.schedule._coefficients import Check, Coefficients

if TYPE_CHECKING:
    from magpolicy.schedule._schedule import Schedule


@frozen
class TraceEntry:
    """The decision about one stream at one evaluation."""

    __module__ = "magpolicy"

    step: int
    """Position in the run."""
    stream: str
    sigma: float | None
    """Noise level, if known."""
    decision: Decision
    accumulated_ratio: float
    """Product of the ratios since the last computed step, after this decision."""
    accumulated_error: float
    """Error the rule tested: what reusing the residual here is modelled to cost; 0 where the rule had no say."""
    skips: int
    """Consecutive skips, after this decision."""
    coefficients: Coefficients = ()
    """How a skip forecasts its residual, as in :attr:`magpolicy.Schedule.coefficients`."""


def arguments_of(trace: Iterable[TraceEntry], plan: Schedule | None) -> dict[str, Any]:
    """A trace as arguments of :meth:`magpolicy.Schedule.from_decisions`; see :meth:`magpolicy.Schedule.from_trace`.

    Raises:
        ArgumentError: the trace is empty.
    """
    entries = list(trace)
    if not entries:
        raise ArgumentError("trace is empty; run at least one step")
    first, last = min(e.step for e in entries), max(e.step for e in entries)
    rows: dict[str, _Row] = {}
    for entry in entries:
        if entry.stream not in rows:
            rows[entry.stream] = _Row.absent(last - first + 1)
        row = rows[entry.stream]
        row.decisions[entry.step - first] = (entry.decision, entry.accumulated_error)
        row.coefficients[entry.step - first] = entry.coefficients
    if plan is not None:
        for name, row in rows.items():
            row.take_expectations(plan, plan._row_of(name), first)
    return {
        "rows": {name: row.decisions for name, row in rows.items()},
        "first_step": first,
        "coefficients": {name: row.coefficients for name, row in rows.items()},
        "checks": {name: row.checks for name, row in rows.items()},
        "sigmas": _planned_levels(plan, first, last) or _levels(entries, first, last),
    }


@define
class _Row:
    """One stream of a trace, a value a step."""

    decisions: list[tuple[Decision, float]]
    coefficients: list[Coefficients]
    checks: list[Check | None]

    @classmethod
    def absent(cls, steps: int) -> _Row:
        return cls([(Decision.ABSENT, 0.0)] * steps, [()] * steps, [None] * steps)

    def take_expectations(self, plan: Schedule, index: int, first: int) -> None:
        """State what the plan expects of its stream ``index`` wherever this row, which begins at ``first``, did as planned."""
        done: list[int] = []  # steps computed so far, here and in the plan
        planned: list[int] = []
        for step in range(plan.first_step, min(plan.first_step + plan.steps, first + len(self.decisions))):
            at, here = step - plan.first_step, step - first
            computes = plan.masks[index][at]
            if here >= 0:
                decision, _ = self.decisions[here]
                forecast, check = plan.coefficients[index][at], plan.checks[index][at]
                if decision.skip and not computes and forecast == self.coefficients[here] and _alike(done, planned, forecast):
                    self.decisions[here] = (decision, plan.modelled[index][at])
                elif decision.computes and computes and check is not None and _alike(done, planned, check[0]):
                    self.checks[here] = check
                done += [step] * decision.computes
            planned += [step] * computes


def _alike(done: Sequence[int], planned: Sequence[int], forecast: Coefficients) -> bool:
    """Whether the steps computed last, those whose residuals a forecast is made of, are the planned ones."""
    used = 1 + len(forecast)
    return done[-used:] == planned[-used:]


def _planned_levels(plan: Schedule | None, first: int, last: int) -> tuple[float, ...] | None:
    """The plan's noise levels of the steps ``first`` to ``last``, where it knows them all."""
    if plan is None or plan.sigmas is None or not plan.first_step <= first <= last < plan.first_step + plan.steps:
        return None
    return plan.sigmas[first - plan.first_step : last + 1 - plan.first_step]


def _levels(entries: Iterable[TraceEntry], first: int, last: int) -> list[float] | None:
    """The noise level of each step; ``None`` unless all are known."""
    known = {entry.step: entry.sigma for entry in entries if entry.sigma is not None}
    return [known[step] for step in range(first, last + 1)] if len(known) == last - first + 1 else None
