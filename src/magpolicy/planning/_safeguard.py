"""Whether a run goes as its plan expects, and what becomes of the rest when it does not.

At a computed step the true residual is at hand, so the forecast that a skip would have used can be compared with it. A plan
says what that comparison should give (:attr:`magpolicy.Schedule.checks`); when it gives much more, the rest is planned again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.schedule._coefficients import Check
from magpolicy.schedule._schedule import Schedule

MARGIN = 2.0
FLOOR = 0.02  # relative error that never alarms: rounding and the noise of one sample


@frozen
class Replan:
    """A plan that was left: where, why, and what is followed from there on."""

    step: int
    """The computed step at which the run was off."""
    stream: str
    measured: float
    """Relative error a skip would have made there."""
    expected: float
    """What the plan expected."""
    schedule: Schedule = field(repr=False)
    """The schedule of the whole run, the steps up to this one as they were."""
    outcome: str
    """``"replanned"``: the rest stays within the largest error the plan accepted; ``"computes"``: the rest computes."""


@frozen(kw_only=True)
class Safeguard:
    """Compares a run with its plan; a value, one for each run.

    Args:
        plan: the schedule followed, from :func:`magpolicy.plan`. One read back from JSON has no calibration to plan from;
            the rest then computes.
        margin: how many times the expected error is still taken for what was planned, >= 1.
        floor: relative error below which nothing is done.
        extra: computed steps that may be added to the plan's; ``None``: as many as it takes.

    Raises:
        ArgumentError: an argument is out of range.
    """

    plan: Schedule = field()
    margin: float = MARGIN
    floor: float = FLOOR
    extra: int | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.plan, Schedule):
            raise ArgumentError(f"plan={_checks._short(self.plan)} must be a Schedule; try plan(calibration, speedup=2.0)")
        _checks.number("margin", self.margin, 1, example="2.0")
        _checks.number("floor", self.floor, 0, example="0.02")
        if self.extra is not None:
            _checks.whole("extra", self.extra, 0, example="4")

    def check(self, stream: str, step: int, history: Sequence[int]) -> Check | None:
        """What to compare the residual computed at a step with: a forecast, and the relative error expected of it.

        Args:
            stream: where it is computed.
            step: position in the full run.
            history: the steps that this stream computed before, newest first.

        Returns:
            ``None`` where there is nothing to compare, or the run is not where the plan says.
        """
        plan, at = self.plan, step - self.plan.first_step
        place = plan.streams.index(stream) if stream in plan.streams else 0
        mask = plan.masks[place]
        if not 0 <= at < plan.steps or not mask[at]:
            return None
        before = tuple(i + plan.first_step for i in reversed(range(at)) if mask[i])
        return plan.checks[place][at] if before[:2] == tuple(history[:2]) else None

    def compare(self, stream: str, step: int, measured: float) -> Replan | None:
        """The replan that ``measured`` at a computed step calls for, ``None`` if the run goes as planned.

        Args:
            stream: where it was measured.
            step: position in the full run of the computed step.
            measured: relative error of the forecast of :attr:`magpolicy.Schedule.checks` there; nan counts as too much.
        """
        place = self.plan.streams.index(stream) if stream in self.plan.streams else 0
        at = step - self.plan.first_step
        check = self.plan.checks[place][at] if 0 <= at < self.plan.steps else None
        if check is None or measured <= max(self.margin * check[1], self.floor):
            return None
        factor = measured / max(check[1], 1e-12)
        schedule = self._rest(at, factor)
        outcome = "computes" if all(schedule.mask[at:]) else "replanned"
        return Replan(step, stream, measured, check[1], schedule, outcome)

    def after(self, replan: Replan) -> Safeguard:
        """The safeguard of the run from there on: what was off is expected to stay so."""
        return evolve(self, plan=_expecting(replan))

    def _rest(self, at: int, factor: float) -> Schedule:
        from magpolicy.planning._planner import replan

        known = self.plan.plan_problem is not None and math.isfinite(factor)
        found = replan(self.plan, at, factor, self.extra) if known else None
        return compute_rest(self.plan, at) if found is None else found


def safeguard_of(asked: float | bool | Safeguard | None, plan: Schedule) -> Safeguard | None:
    """The safeguard of one run: none for ``None`` and ``False``, the usual one for ``True``, or with a margin.

    Raises:
        ArgumentError: neither of these.
    """
    if asked is None or asked is False:
        return None
    if isinstance(asked, Safeguard):
        return evolve(asked, plan=plan)
    return Safeguard(plan=plan, margin=MARGIN if asked is True else _checks.number("safeguard", asked, 1, example="2.0"))


def compute_rest(plan: Schedule, at: int) -> Schedule:
    """The plan up to the step ``at``, then every step computed."""
    names = plan.streams

    def cut(rows: tuple[tuple[Any, ...], ...]) -> dict[str, list[Any]]:
        return {n: [v if i <= at else 0.0 for i, v in enumerate(row)] for n, row in zip(names, rows, strict=True)}

    masks = {n: [m or i > at for i, m in enumerate(mask)] for n, mask in zip(names, plan.masks, strict=True)}
    return Schedule.from_mask(masks, coefficients=cut(plan.coefficients), errors=cut(plan.modelled), first_step=plan.first_step)


def _expecting(replan: Replan) -> Schedule:
    """The new schedule with the expected errors after the replan raised by what was measured."""
    schedule, factor = replan.schedule, replan.measured / max(replan.expected, 1e-12)
    at = replan.step - schedule.first_step
    checks = tuple(
        tuple(c if c is None or i <= at else (c[0], c[1] * factor) for i, c in enumerate(row)) for row in schedule.checks
    )
    return evolve(schedule, checks=checks)
