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
from magpolicy.calibration._calibration import Calibration
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from magpolicy.schedule._coefficients import Check
from magpolicy.schedule._schedule import Schedule

MARGIN = 2.0
FLOOR = 0.02  # relative error that never alarms: rounding and the noise of one sample


@frozen
class Replan:
    """That a run left its plan: at which step, why, and which schedule it followed from then on."""

    __module__ = "magpolicy"

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
    """Compares a run with its plan. Immutable; each run has its own.

    Attributes:
        plan: the schedule followed, from :func:`magpolicy.plan`.
        calibration: what the rest of a run is planned from. A run that is planned for a target has its calibration. A run of a
            given schedule needs it here; without it, the rest computes.
        margin: by which factor an error may exceed the expected one, >= 1.
        floor: relative error below which the run never leaves its plan.
        extra: how many steps more than the plan may compute; ``None``: any number.

    Raises:
        ArgumentError: an argument is out of range.
    """

    __module__ = "magpolicy"

    plan: Schedule = field()
    calibration: Calibration | None = field(default=None, repr=False)
    margin: float = MARGIN
    floor: float = FLOOR
    extra: int | None = None
    _request: PlanRequest | None = field(default=None, repr=False)
    """What the plan was made from."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.plan, Schedule):
            raise ArgumentError(f"plan={_checks._short(self.plan)} must be a Schedule; try plan(calibration, speedup=2.0)")
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise ArgumentError(f"calibration={_checks._short(self.calibration)} must be a Calibration; leave it out")
        _checks.number("margin", self.margin, 1, example="2.0")
        _checks.number("floor", self.floor, 0, example="0.02")
        if self.extra is not None:
            _checks.whole("extra", self.extra, 0, example="4")

    def check(self, stream: str, step: int, history: Sequence[int]) -> Check | None:
        """The forecast to compare with the residual that a step computes, and its expected relative error.

        Args:
            stream: the stream that computes.
            step: position in the full run.
            history: the steps that this stream computed before, newest first.

        Returns:
            ``None`` if the plan has no comparison there, or the run computed other steps than the plan.
        """
        plan, at = self.plan, step - self.plan.first_step
        index = plan._row_of(stream)
        mask = plan.masks[index]
        if not 0 <= at < plan.steps or not mask[at]:
            return None
        before = tuple(i + plan.first_step for i in reversed(range(at)) if mask[i])
        return plan.checks[index][at] if before[:2] == tuple(history[:2]) else None

    def compare(self, stream: str, step: int, measured: float) -> Replan | None:
        """The replan that ``measured`` at a computed step calls for, ``None`` if the run goes as planned.

        Args:
            stream: the stream that was measured.
            step: position in the full run of the computed step.
            measured: relative error of the forecast of :attr:`magpolicy.Schedule.checks` there; nan counts as too large.
        """
        at = step - self.plan.first_step
        check = self.plan.checks[self.plan._row_of(stream)][at] if 0 <= at < self.plan.steps else None
        if check is None or measured <= max(self.margin * check[1], self.floor):
            return None
        factor = measured / max(check[1], 1e-12)
        schedule = self._rest(at, factor)
        outcome = "computes" if all(schedule.mask[at:]) else "replanned"
        return Replan(step, stream, measured, check[1], schedule, outcome)

    def after(self, replan: Replan) -> Safeguard:
        """The safeguard of the rest of the run: it expects errors to stay larger by the measured factor."""
        return evolve(self, plan=_expecting(replan))

    def _rest(self, at: int, factor: float) -> Schedule:
        from magpolicy.planning._replan import replan  # late: few runs are ever planned again

        request = self._request if self.calibration is None else _request_for(self.plan, self.calibration)
        if request is None or not math.isfinite(factor):
            return compute_rest(self.plan, at)
        problem = evolve(request.problem(), first_step=self.plan.first_step)
        again = replan(problem, self.plan, at, factor, self.extra)
        return compute_rest(self.plan, at) if again is None else again


def _request_for(plan: Schedule, calibration: Calibration) -> PlanRequest:
    """What a schedule could have been planned from, its own settings not being known."""
    target = PlanTarget(forecast=None if any(map(any, plan.coefficients)) else "hold")
    if plan.sigmas is not None:
        return PlanRequest(source=calibration, target=target, sigmas=plan.sigmas)
    end = plan.first_step + plan.steps
    return PlanRequest(source=calibration, target=target, steps=end, part=(plan.first_step, end))


def safeguard_of(
    asked: float | bool | Safeguard | None, plan: Schedule, request: PlanRequest | None = None
) -> Safeguard | None:
    """The safeguard of one run: none for ``None`` and ``False``, the usual one for ``True``, or with a margin.

    ``request`` is what the plan was made from; ``None``: the plan was given.

    Raises:
        ArgumentError: neither of these.
    """
    if asked is None or asked is False:
        return None
    if isinstance(asked, Safeguard):
        return evolve(asked, plan=plan, request=request)
    margin = MARGIN if asked is True else _checks.number("safeguard", asked, 1, example="2.0")
    return Safeguard(plan=plan, margin=margin, request=request)


def compute_rest(plan: Schedule, at: int) -> Schedule:
    """The plan up to the step ``at``, then every step computed."""

    def cut(rows: tuple[tuple[Any, ...], ...], after: Any = 0.0) -> dict[str, list[Any]]:
        until = ([v if i <= at else after for i, v in enumerate(row)] for row in rows)
        return dict(zip(plan.streams, until, strict=True))

    masks = {name: [m or i > at for i, m in enumerate(mask)] for name, mask in zip(plan.streams, plan.masks, strict=True)}
    return Schedule.from_mask(
        masks,
        coefficients=cut(plan.coefficients),
        errors=cut(plan.modelled),
        checks=cut(plan.checks, after=None),
        first_step=plan.first_step,
        sigmas=plan.sigmas,
    )


def _expecting(replan: Replan) -> Schedule:
    """The new schedule with the expected errors after the replan raised by what was measured."""
    schedule, factor = replan.schedule, replan.measured / max(replan.expected, 1e-12)
    at = replan.step - schedule.first_step
    checks = tuple(
        tuple(c if c is None or i <= at else (c[0], c[1] * factor) for i, c in enumerate(row)) for row in schedule.checks
    )
    return evolve(schedule, checks=checks)
