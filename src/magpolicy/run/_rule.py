"""Runs that the magnitude-aware rule decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._forecast import Forecast, Hold, Linear, Measured
from magpolicy.policy._curve import Curve
from magpolicy.policy._policy import MagPolicy
from magpolicy.policy._semantics import Semantics
from magpolicy.policy._step_table import Limits, StepTable, build_step_tables
from magpolicy.run._config import (
    FromSource,
    Joint,
    Levels,
    PreparedRun,
    Reading,
    RunConfig,
    expert_boundary_of,
    latest,
    run_length,
    with_more_streams,
)


@frozen(kw_only=True)
class Rule(FromSource):
    """The magnitude-aware rule, on a curve."""

    curve: Curve
    threshold: float
    max_skips: int
    limits: Limits
    semantics: Semantics
    forecast: str | None = None
    damping: float = 1.0

    advice = "speedup='balanced' plans the run, and forecasts what it skips"

    @property
    def given(self) -> Any:
        return self.preset or self.calibration or self.curve

    @property
    def streams(self) -> tuple[str, ...]:
        return self.curve.streams

    @property
    def levels(self) -> tuple[float, ...]:
        return self.curve.levels

    @property
    def joint(self) -> Joint:
        return self.semantics.joint

    @property
    def asks_skips(self) -> bool:
        return self.threshold > 0 and self.max_skips > 0 and self.limits.retention < 1

    @property
    def batched(self) -> bool:
        return self.semantics.batched

    @property
    def reads(self) -> Reading:
        return _reading(self.curve) if self.semantics.interpolation == "noise_level" else "count"

    @property
    def expert_boundary(self) -> float | None:
        return None if self.reads == "count" or self.semantics.experts == "one" else expert_boundary_of(self.preset)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        count, levels = run_length(steps, sigmas, self.curve.steps)
        if levels is not None and self.semantics.interpolation == "noise_level" and self.nearest is None:
            self.curve._check_reach(levels)
        return count, levels

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        key = (steps, sigmas, self.limits.expert_step)
        if self.nearest is None:
            return self._prepared(*latest(self._last, key, lambda: self._lay_out(steps, sigmas, self.limits)))
        forced, words = _checks.inside("forced", self.limits.forced, steps)
        limits = evolve(self.limits, forced=forced) if words else self.limits
        try:
            laid_out = latest(self._last, key, lambda: self._lay_out(steps, sigmas, limits))
        except ArgumentError as error:  # what could not be seen before the run was known
            return PreparedRun.in_full(steps, f"{error}: every step of this run computes")
        return evolve(self._prepared(*laid_out), differs=words)

    def _prepared(self, tables: Mapping[str, StepTable], forecast: Forecast) -> PreparedRun:
        fallback, rule, semantics = next(iter(tables.values())), (self.threshold, self.max_skips), self.semantics
        return PreparedRun(lambda stream: MagPolicy._from_table(tables.get(stream, fallback), rule, semantics), forecast)

    def with_streams(self, bases: Mapping[str, str]) -> RunConfig:
        curve = with_more_streams(self.curve, bases)
        return self if curve is self.curve else evolve(self, curve=curve, last={})

    def with_expert_step(self, step: int | None) -> RunConfig:
        if step is None or self.limits.expert_step is not None:
            return self
        return evolve(self, limits=evolve(self.limits, expert_step=step))

    def _lay_out(self, steps: int, sigmas: Levels, limits: Limits) -> Any:
        if limits.expert_step is None and self.preset is not None and self.semantics.experts != "one":
            limits = evolve(limits, expert_step=self.preset.expert_step(steps, sigmas))
        return build_step_tables(self.curve, steps, sigmas, limits, self.semantics), self._forecast(steps, sigmas)

    def _forecast(self, steps: int, sigmas: Levels) -> Forecast:
        if self.forecast == "linear":
            return Linear(self.curve.levels_for(steps) if sigmas is None else sigmas, self.damping)
        if self.forecast == "calibrated":
            assert self.calibration is not None
            return Measured(self.calibration.resample(steps=steps if sigmas is None else None, sigmas=sigmas))
        return Hold()


def _reading(curve: Curve) -> Literal["noise", "shares"]:
    return "shares" if curve.assumed else "noise"
