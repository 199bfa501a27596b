"""How a skipped step's residual is made from the last two computed ones: the coefficient of each skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from attrs import frozen

from magpolicy import _checks, _gram
from magpolicy._calibration import Calibration
from magpolicy._errors import ArgumentError
from magpolicy._schedule import Schedule

FORECASTS = ("hold", "linear", "calibrated")


def check_forecast(forecast: Any, damping: Any) -> tuple[str | None, float]:
    """The two settings of forecasts, checked; ``None``: as the source says."""
    if forecast is not None:
        _checks.one_of("forecast", forecast, FORECASTS)
    if damping is None:
        return forecast, 1.0
    if forecast != "linear":
        raise ArgumentError(f"damping={_checks._short(damping)} is for forecast='linear'; leave damping out")
    return forecast, _checks.number("damping", damping, 0, 1, example="0.5")


class Forecast(Protocol):
    """The coefficients of one run. p and j are the last two computed evaluations, -1 where there is none."""

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        """The c with which a skipped evaluation i reuses r_j + c (r_j - r_p)."""

    def keeps(self, stream: str, i: int) -> int:
        """Residuals later skips can use once evaluation i computes: 0, 1 (its own) or 2 (the one before as well)."""


@frozen
class Hold:
    """The last computed residual, as it is."""

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        return 0.0

    def keeps(self, stream: str, i: int) -> int:
        return 1


@frozen
class Linear:
    """The straight line through the last two computed residuals over noise level, damped."""

    levels: tuple[float, ...]
    damping: float

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        return self.damping * float(_gram.slopes(np.asarray(self.levels), p, j, i))

    def keeps(self, stream: str, i: int) -> int:
        return 2


@frozen
class Measured:
    """The coefficient that was best when calibrating, whatever was computed."""

    calibration: Calibration

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        return self.calibration.coefficient(stream, p, j, i) if p >= 0 else 0.0

    def keeps(self, stream: str, i: int) -> int:
        return 2


@frozen
class Planned:
    """The coefficients of a schedule, where what was computed is what it planned."""

    schedule: Schedule

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        place = self._place(stream)
        mask, first = self.schedule.masks[place], self.schedule.first_step
        before = [x + first for x in range(i - first) if mask[x]][-2:]
        return self.schedule.coefficients[place][i - first] if before == [p, j] else 0.0

    def keeps(self, stream: str, i: int) -> int:
        place, at = self._place(stream), i - self.schedule.first_step
        if len(set(self.schedule.masks)) > 1:  # a joint call computes more than this stream's mask says
            return 2 if any(map(any, self.schedule.coefficients)) else 1
        mask, coefficients = self.schedule.masks[place], self.schedule.coefficients[place]
        own, following = _gap(mask, at), 0
        if own.stop < len(mask):
            following = any(coefficients[x] for x in _gap(mask, own.stop))
        if any(coefficients[x] for x in own):
            return 2
        return 1 if own or following else 0

    def _place(self, stream: str) -> int:
        return self.schedule.streams.index(stream) if stream in self.schedule.streams else 0


def _gap(mask: Sequence[bool], at: int) -> range:
    """The skipped steps after the computed step ``at``."""
    stop = at + 1
    while stop < len(mask) and not mask[stop]:
        stop += 1
    return range(at + 1, stop)


def along(forecast: Forecast, stream: str, mask: Sequence[bool], first: int = 0) -> list[float]:
    """The coefficient of every step of a run that computes where ``mask`` says; 0 where it computes."""
    found, p, j = [], -1, -1
    for i, computes in enumerate(mask, first):
        found.append(0.0 if computes else forecast.coefficient(stream, p, j, i))
        if computes:
            p, j = j, i
    return found
