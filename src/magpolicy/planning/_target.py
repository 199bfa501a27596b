"""What a plan is asked for: a target and settings, checked before anything is looked up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen
from attrs.converters import optional

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._forecast import check_forecast
from magpolicy.planning._objective import Objective, objective

SPEEDS = {"quality": 1.5, "balanced": 2.0, "fast": 3.0}
"""Names for speedups."""


def speedup_of(value: Any) -> float:
    """A speedup, in evaluations over computed ones, given as a number or by its name.

    Raises:
        ArgumentError: it is no number >= 1, and no speedup has that name.
    """
    if isinstance(value, str):
        if value not in SPEEDS:
            close = _checks.closest(value, SPEEDS, 1)
            known = ", ".join(f"{name!r} ({speed:g})" for name, speed in SPEEDS.items())
            hint = close[0] if close else "balanced"
            raise ArgumentError(f"speedup={_checks._short(value)} must be a number or one of {known}; try {hint!r}")
        value = SPEEDS[value]
    return _checks.number("speedup", value, 1, example="2.0")


@frozen(kw_only=True)
class PlanTarget:
    """Arguments of :func:`magpolicy.plan`, checked; ``None``: as the source says."""

    speedup: float | None = field(default=None, converter=optional(speedup_of))
    computed: int | None = None
    error: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    forced: Iterable[int] | None = None
    forecast: str | None = None
    damping: float | None = None
    objective: str | Objective | None = None
    power: float | None = None
    weights: Iterable[float] | None = None
    batched: bool | None = None
    guidance: float | Mapping[str, float] | None = None
    expert_step: int | None = None

    def __attrs_post_init__(self) -> None:
        for name, check in _CHECKS.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check(value))
        check_forecast(self.forecast, self.damping)
        _checks.one_of("batched", self.batched, (None, True, False))
        if self.batched is False and self.chosen_objective.gather == "trajectory":
            raise ArgumentError("objective='trajectory' plans streams jointly; leave batched out, or try objective='latent'")
        if self.forecast == "second-order" and self.error is not None:
            raise ArgumentError(
                f"error={self.error:g} bounds each step, forecast='second-order' fits all together; try forecast='calibrated'"
            )
        if self.forecast == "second-order" and self.batched is False:
            raise ArgumentError(
                "batched=False plans each stream, forecast='second-order' fits all together; try forecast='calibrated'"
            )
        if self.guidance is not None and not isinstance(self.guidance, Mapping):
            _checks.number("guidance", self.guidance, -math.inf, example="5.0")

    @property
    def names_objective(self) -> bool:
        """Whether the caller said what is made least."""
        return self.objective is not None or self.power is not None

    @property
    def chosen_objective(self) -> Objective:
        """What is made least: what the caller said, or the objective that serves every plan."""
        return objective(self.objective, self.power)

    @property
    def targets(self) -> dict[str, float]:
        """The targets given."""
        every = {"speedup": self.speedup, "computed": self.computed, "error": self.error}
        return {name: value for name, value in every.items() if value is not None}

    def check_target(self) -> None:
        """Make sure there is exactly one target.

        Raises:
            ArgumentError: there is none, or more than one.
        """
        if len(self.targets) != 1:
            given = ", ".join(f"{name}={value:g}" for name, value in self.targets.items()) or "no target"
            raise ArgumentError(f"{given} given: pass one of speedup, computed and error; try speedup=2.0")

    def budget(self, evaluations: int) -> int | None:
        """How many of ``evaluations`` may compute; ``None``: as few as the bound on the error allows."""
        if self.computed is not None:
            return self.computed
        return None if self.speedup is None else int(evaluations / self.speedup + 1e-9)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "computed": lambda v: _checks.whole("computed", v, 1, example="14"),
    "error": lambda v: _checks.number("error", v, 0, example="0.05"),
    "max_skips": lambda v: _checks.whole("max_skips", v, 0, example="3"),
    "retention": lambda v: _checks.number("retention", v, 0, 1, example="0.1"),
    "damping": lambda v: _checks.number("damping", v, 0, 1, example="0.5"),
    "forced": lambda v: _checks.listed("forced", v, "steps"),
    "weights": lambda v: _checks.listed("weights", v, "numbers"),
    "expert_step": lambda v: _checks.whole("expert_step", v, 0, example="26"),
}
