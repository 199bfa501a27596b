"""The magnitude-aware policy of one stream: the skip test and its state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import ArgumentError, RunError
from magpolicy.policy._curve import SINGLE, Curve
from magpolicy.policy._decision import Decision
from magpolicy.policy._semantics import Semantics
from magpolicy.policy._semantics import semantics as semantics_of
from magpolicy.policy._step_table import Limits, StepTable, build_step_tables

STATE_VERSION = 1


class MagPolicy:
    """Decides, evaluation by evaluation, whether one stream may reuse its cached residual.

    The rule (MagCache, arXiv 2506.09045, section 4): with accumulated ratio P=1, accumulated error E=0 and skips k=0, on
    an eligible step P *= ratio, k += 1, E += abs(1-P); skip if E is within ``threshold`` and k <= ``max_skips``, else
    compute and set P=1, E=0, k=0. Nothing is skipped before the first computed step.

    Args:
        ratios: one magnitude ratio a step of this run (see :class:`magpolicy.Curve` to fit a table to a run).
        threshold: bound on the accumulated error, >= 0.
        max_skips: K, how many steps in a row may be skipped, >= 0.
        retention: leading share of the run that is always computed, 0 to 1.
        start_step: first step that may be skipped.
        end_step: last step that may be skipped (inclusive); negative counts from the end, ``None`` is the last.
        forced: steps that are always computed; negative ones count from the end.
        semantics: a name from :func:`magpolicy.semantics_names` or a :class:`magpolicy.Semantics`; ``None`` is our own.

    Attributes:
        step: position in the run of the next decision.
        accumulated_ratio: P, product of the ratios since the last computed step.
        accumulated_error: E, sum of abs(1-P) since the last computed step.
        skips: k, consecutive skips counted.

    Raises:
        ArgumentError: an argument is out of range; the message names it.
    """

    __module__ = "magpolicy"

    __slots__ = (
        "_before", "_computed", "_gates", "_ineligible", "_max_skips", "_one", "_pending", "_ratios", "_semantics", "_steps",
        "_strict", "_threshold", "_zero", "accumulated_error", "accumulated_ratio", "skips", "step",
    )  # fmt: skip

    def __init__(
        self,
        ratios: Sequence[float],
        *,
        threshold: float,
        max_skips: int,
        retention: float,
        start_step: int = 0,
        end_step: int | None = None,
        forced: Iterable[int] = (),
        semantics: str | Semantics | None = None,
    ) -> None:
        resolved = semantics_of(semantics)
        curve = Curve(ratios)
        limits = Limits(
            retention=_checks.number("retention", retention, 0, 1, example="0.2"),
            start_step=start_step,
            end_step=end_step,
            forced=forced,
        )
        table = build_step_tables(curve, len(curve), None, limits, resolved)[SINGLE]
        self._prepare(table, check_rule(threshold, max_skips), resolved)

    @classmethod
    def _from_table(cls, table: StepTable, rule: tuple[float, int], semantics: Semantics) -> MagPolicy:
        policy = cls.__new__(cls)
        policy._prepare(table, rule, semantics)
        return policy

    def _prepare(self, table: StepTable, rule: tuple[float, int], semantics: Semantics) -> None:
        number = np.float32 if semantics.precision == "float32" else float
        self._ratios, self._gates, self._steps = table.ratios, table.gates, len(table.ratios)
        self._threshold, self._max_skips = number(rule[0]), rule[1]
        self._strict = semantics.comparison == "<"
        self._semantics, self._one, self._zero = semantics, number(1), number(0)
        self._ineligible = semantics.ineligible == "keep"
        self.reset()

    def reset(self, step: int = 0) -> None:
        """Begin a run, at position ``step`` of it (img2img and later stages begin in the middle).

        Raises:
            ArgumentError: ``step`` lies outside the run.
        """
        if _checks.whole("step", step, 0, example="0") > self._steps:
            raise ArgumentError(f"step={step} lies outside this run of {self._steps} steps; use 0 to {self._steps - 1}")
        self.step: int = step
        self.accumulated_ratio: Any = self._one
        self.accumulated_error: Any = self._zero
        self.skips: int = self._semantics.initial_skips
        self._computed = False
        self._pending: tuple[Any, Any, int] | None = None
        self._before: tuple[int, Any] | None = None

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self._steps

    def decide(self, step: int | None = None) -> Decision:
        """Decide the next evaluation, or the one at position ``step`` if this stream left out the steps before it.

        Raises:
            RunError: the run is over, or ``step`` was decided already.
        """
        return self.settle(self.propose(step))

    def propose(self, step: int | None = None) -> Decision:
        """The decision of this stream alone. :meth:`settle` must follow, in a joint call with the decision of the call."""
        if step is not None and step != self.step:
            self._advance_to(step)
        i = self.step
        if i >= self._steps:
            raise RunError(f"this run's {self._steps} steps are all decided; call reset() to begin another run")
        gate = self._gates[i]
        if gate is not None:
            self._pending = None
            return gate
        if not self._computed:
            self._pending = None
            return Decision.NO_RESIDUAL
        ratio = self.accumulated_ratio * self._ratios[i]
        error_kind = self._semantics.error
        if error_kind == "absolute":
            error = self.accumulated_error + abs(self._one - ratio)
        elif error_kind == "signed":
            error = self.accumulated_error + (self._one - ratio)
        else:
            error = self.accumulated_error + abs(self._one - self._ratios[i])
        skips = self.skips + 1
        self._pending = (ratio, error, skips)
        if not (error < self._threshold if self._strict else error <= self._threshold):
            return Decision.THRESHOLD
        return Decision.REUSED if skips <= self._max_skips else Decision.MAX_SKIPS

    def settle(self, decision: Decision) -> Decision:
        """Make ``decision`` final for the proposed step, go on to the next step, and return ``decision``."""
        if decision.skip and self._pending is not None:
            self.accumulated_ratio, self.accumulated_error, self.skips = self._pending
        elif not self._keeps(decision):
            self.accumulated_ratio, self.accumulated_error, self.skips = self._one, self._zero, 0
        if not decision.skip:
            self._computed = True
        self._pending = self._before = None
        self.step += 1
        return decision

    def settle_rejected(self, decision: Decision) -> Decision:
        """Accept a skip of the whole call although this stream failed its test: its accumulators start afresh."""
        self._pending = (self._one, self._zero, 0)
        return self.settle(decision)

    def forget(self) -> None:
        """Drop a proposal that was not carried out: the state is again that before :meth:`propose`."""
        if self._before is not None:
            self.step, self.accumulated_ratio = self._before
        self._pending = self._before = None

    @property
    def tested_error(self) -> float:
        """Accumulated error that the proposed step was tested with; 0 if it was decided without the test."""
        return 0.0 if self._pending is None else float(self._pending[1])

    def _keeps(self, decision: Decision) -> bool:
        if decision is Decision.FORBIDDEN:
            return self._semantics.forbidden_effect == "bypass"
        return self._ineligible and decision in _INELIGIBLE

    def _advance_to(self, step: int) -> None:
        if not self.step < _checks.whole("step", step, 0, example=str(self.step)) < self._steps:
            raise RunError(
                f"step={step} cannot follow: the next step is {self.step} of {self._steps}; call reset() to begin another run"
            )
        if self._before is None:
            self._before = self.step, self.accumulated_ratio
        # Steps this stream sat out: the residual is older by them.
        for ratio in self._ratios[self.step : step]:
            self.accumulated_ratio *= ratio
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers, for :meth:`load_state_dict` of a policy made with the same arguments."""
        return {
            "version": STATE_VERSION,
            "steps": self._steps,
            "step": self.step,
            "accumulated_ratio": float(self.accumulated_ratio),
            "accumulated_error": float(self.accumulated_error),
            "skips": self.skips,
            "computed": self._computed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        Raises:
            ArgumentError: the state is of another run length or version, or holds impossible values. Nothing is changed.
        """
        expected = set(MagPolicy.state_dict(self))
        if not isinstance(state, Mapping) or set(state) != expected:
            found = f" has keys {sorted(map(str, state))}" if isinstance(state, Mapping) else f"={_checks._short(state)}"
            raise ArgumentError(f"state{found}, expected {sorted(expected)}; pass a state_dict() unchanged")
        if state["version"] != STATE_VERSION or state["steps"] != self._steps:
            raise ArgumentError(
                f"state is of version {state['version']} and {state['steps']} steps, this policy of version {STATE_VERSION} "
                f"and {self._steps} steps; make the policy with the arguments it was saved with"
            )
        step = _checks.whole("state['step']", state["step"], 0, self._steps, example="0")
        skips = _checks.whole("state['skips']", state["skips"], 0, example="0")
        ratio = _checks.number("state['accumulated_ratio']", state["accumulated_ratio"], 0, example="1.0")
        error = _checks.number("state['accumulated_error']", state["accumulated_error"], -math.inf, example="0.0")
        self.reset(step)
        number = type(self._one)
        self.accumulated_ratio, self.accumulated_error, self.skips = number(ratio), number(error), skips
        self._computed = bool(state["computed"])

    def __repr__(self) -> str:
        return (
            f"<MagPolicy step {self.step} of {self._steps}: ratio {float(self.accumulated_ratio):.4g}, "
            f"error {float(self.accumulated_error):.4g} of {float(self._threshold):.4g}, skips {self.skips}/{self._max_skips}>"
        )


_INELIGIBLE = frozenset({Decision.RETENTION, Decision.WINDOW, Decision.UNCALIBRATED})


class ScheduledPolicy:
    """Follows a given mask; stands where a :class:`MagPolicy` stands."""

    tested_error = 0.0
    accumulated_ratio = 1.0

    def __init__(self, mask: Sequence[bool]) -> None:
        self._mask = tuple(mask)
        self.steps = len(self._mask)
        self.reset()

    def reset(self, step: int = 0) -> None:
        self.step, self.skips, self.accumulated_error, self._computed = step, 0, 0.0, False
        self._before: int | None = None

    def propose(self, step: int | None = None) -> Decision:
        if step is not None and step != self.step:
            if not self.step < step < self.steps:
                raise RunError(f"step={step} cannot follow: the next step is {self.step} of {self.steps}; begin another run")
            self._before = self.step if self._before is None else self._before
            self.step = step
        if self.step >= self.steps:
            raise RunError(f"the schedule's {self.steps} steps are all decided; begin another run")
        if self._mask[self.step]:
            return Decision.SCHEDULED
        return Decision.REUSED if self._computed else Decision.NO_RESIDUAL

    def settle(self, decision: Decision) -> Decision:
        self.skips = self.skips + 1 if decision.skip else 0
        self._computed |= not decision.skip
        self._before = None
        self.step += 1
        return decision

    settle_rejected = settle

    def carry_on(self, other: Policy) -> ScheduledPolicy:
        """Stand where another policy of the run stands; returns itself."""
        self.step, self.skips = other.step, other.skips
        self._computed, self._before = other._computed, None
        return self

    def forget(self) -> None:
        """As :meth:`MagPolicy.forget`."""
        if self._before is not None:
            self.step, self._before = self._before, None


def check_rule(threshold: Any, max_skips: Any) -> tuple[float, int]:
    """The rule's two settings, checked."""
    return (
        _checks.number("threshold", threshold, 0, example="0.06"),
        _checks.whole("max_skips", max_skips, 0, example="3"),
    )


Policy = MagPolicy | ScheduledPolicy


def decide_together(
    policies: Sequence[Policy], joint: str, step: int | None = None
) -> tuple[list[Decision], list[Decision], list[float]]:
    """One answer for a call that holds several streams.

    Returns what each policy proposed, the decision each is to be settled with, and the error each was tested with.
    """
    try:
        proposed = [policy.propose(step) for policy in policies]
    except RunError:
        for policy in policies:
            policy.forget()
        raise
    errors = [policy.tested_error for policy in policies]
    if len(proposed) == 1:
        return proposed, proposed, errors
    skips = [decision.skip for decision in proposed]
    skip = all(skips) if joint == "all" else any(skips) if joint == "any" else skips[0]
    if skip and Decision.NO_RESIDUAL not in proposed:
        return proposed, [Decision.REUSED] * len(proposed), errors
    return proposed, [Decision.JOINT if d.skip else d for d in proposed], errors


def settle_together(policies: Sequence[Policy], proposed: Sequence[Decision], decided: Sequence[Decision]) -> None:
    """Settle every policy of a joint call."""
    for policy, own, decision in zip(policies, proposed, decided, strict=True):
        if decision.skip and not own.skip:
            policy.settle_rejected(decision)
        else:
            policy.settle(decision)
