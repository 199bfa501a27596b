"""How a skipped step's residual is made from those computed last: the coefficients of each skip."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from attrs import frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._calibration import Calibration
from magpolicy.schedule._coefficients import ORDER, Coefficients
from magpolicy.schedule._schedule import Schedule

MEASURED = ("calibrated", "second-order")
FORECASTS = ("hold", "linear", *MEASURED)


def check_forecast(forecast: Any, damping: Any) -> tuple[str | None, float]:
    """The two settings of forecasts, checked; ``None``: as the source says."""
    if forecast is not None:
        _checks.one_of("forecast", forecast, FORECASTS)
    if damping is None:
        return forecast, 1.0
    if forecast != "linear":
        raise ArgumentError(f"damping={_checks._short(damping)} is for forecast='linear'; leave damping out")
    return forecast, _checks.number("damping", damping, 0, 1, example="0.5")


History = tuple[int, ...]
"""The evaluations computed last, newest first; as many as there are, and at most as a forecast can use."""


class Forecast(abc.ABC):
    """The forecasts of one run."""

    __slots__ = ()
    holds: ClassVar[bool] = False
    """Whether every skip holds the last residual: nothing has to be asked."""

    @abc.abstractmethod
    def coefficients(self, stream: str, history: History, i: int) -> Coefficients:
        """How a skipped evaluation i is forecast from the residuals of ``history`` (:attr:`Schedule.coefficients`)."""

    @abc.abstractmethod
    def residuals_to_keep(self, stream: str, i: int) -> int:
        """Residuals later skips can use once evaluation i computes: its own and those computed before it, newest first."""

    def along(self, stream: str, mask: Sequence[bool], first: int = 0) -> tuple[Coefficients, ...]:
        """The coefficients of every evaluation of a run that computes where ``mask`` says; ``()`` where it computes.

        Args:
            first: position of the mask's first entry.
        """
        found: list[Coefficients] = []
        history: History = ()
        for i, computes in enumerate(mask, first):
            found.append(() if computes else self.coefficients(stream, history, i))
            history = computed_after(history, i) if computes else history
        return tuple(found)


@frozen
class Hold(Forecast):
    """The last computed residual, as it is."""

    holds = True

    def coefficients(self, stream: str, history: History, i: int) -> Coefficients:
        return ()

    def residuals_to_keep(self, stream: str, i: int) -> int:
        return 1

    def along(self, stream: str, mask: Sequence[bool], first: int = 0) -> tuple[Coefficients, ...]:
        return ((),) * len(mask)


@frozen
class Linear(Forecast):
    """The straight line through the last two computed residuals over noise level, damped."""

    levels: tuple[float, ...]
    damping: float

    def coefficients(self, stream: str, history: History, i: int) -> Coefficients:
        if len(history) < 2:
            return ()
        j, p = history[:2]
        return _single(self.damping * float(_gram.slopes(np.asarray(self.levels), p, j, i)))

    def residuals_to_keep(self, stream: str, i: int) -> int:
        return 2


@frozen
class Measured(Forecast):
    """The coefficient that was best when calibrating, whatever was computed."""

    calibration: Calibration

    def coefficients(self, stream: str, history: History, i: int) -> Coefficients:
        if len(history) < 2:
            return ()
        j, p = history[:2]
        return _single(self.calibration.coefficient(stream, p, j, i))

    def residuals_to_keep(self, stream: str, i: int) -> int:
        return 2


class Planned(Forecast):  # looked up at every skip, so it is laid out once
    """The coefficients of a schedule, where what was computed is what it planned."""

    def __init__(self, schedule: Schedule) -> None:
        self._places = {name: place for place, name in enumerate(schedule.streams)}
        self._first = schedule.first_step
        rows = [zip(*row, strict=True) for row in zip(schedule.masks, schedule.coefficients, strict=True)]
        self._forecasts = [_with_history(row, self._first) for row in rows]
        self._keeps = [_kept(*row) for row in zip(schedule.masks, schedule.coefficients, strict=True)]
        if len(set(schedule.masks)) > 1:  # a joint call computes more than a stream's mask says
            most = 1 + max(len(c) for row in schedule.coefficients for c in row)
            self._keeps = [[most] * schedule.steps] * len(schedule.streams)

    def coefficients(self, stream: str, history: History, i: int) -> Coefficients:
        wanted, found = self._forecasts[self._places.get(stream, 0)][i - self._first]
        return found if history[: len(wanted)] == wanted else ()

    def residuals_to_keep(self, stream: str, i: int) -> int:
        at = i - self._first
        return self._keeps[self._places.get(stream, 0)][at] if at >= 0 else 0


def _single(c: float) -> Coefficients:
    return (c,) if c else ()


def _with_history(row: Iterable[tuple[bool, Coefficients]], first: int) -> list[tuple[History, Coefficients]]:
    """Per step its coefficients and the evaluations they are for."""
    found: list[tuple[History, Coefficients]] = []
    history: History = ()
    for i, (computes, c) in enumerate(row, first):
        found.append((history[: 1 + len(c)], c))
        history = computed_after(history, i) if computes else history
    return found


def _kept(mask: Sequence[bool], coefficients: Sequence[Coefficients]) -> list[int]:
    """Per step the residuals that skips after it use, if it computes; of those, each later computed step displaces one."""
    found, reach = [0] * len(mask), 0
    for i in reversed(range(len(mask))):
        found[i] = reach
        reach = max(reach - 1, 0) if mask[i] else max(reach, 1 + len(coefficients[i]))
    return found


def computed_after(history: History, i: int) -> History:
    """``history`` once evaluation i was computed."""
    return (i, *history[:ORDER])
