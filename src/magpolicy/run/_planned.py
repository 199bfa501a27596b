"""Runs that are planned for a target, once their lengths are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._lessons import Taught, at_levels_of
from magpolicy.calibration._prior import flow_levels, is_measured
from magpolicy.catalog._learned import in_words
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from magpolicy.policy._curve import SINGLE, Curve
from magpolicy.run._config import (
    FromSource,
    Levels,
    PreparedRun,
    RunConfig,
    expert_boundary_of,
    latest,
    run_length,
    with_more_streams,
)


@frozen(kw_only=True)
class Plan(FromSource):
    """A target: each run is planned for it once its length is known."""

    curve: Curve | None
    """``None``: nothing is known of the model."""
    target: PlanTarget
    learning: bool = False
    """Whether the run is measured for later ones."""

    schedules = True
    reads = "noise"

    @property
    def advice(self) -> str:
        taught = Taught.of(self.calibration)
        if taught is not None and not (taught.full and taught.whole):
            return "one run with learn='first' computes every step, and teaches more"
        if self.calibration is not None:
            return ""
        if self.learning:
            return "the next run is planned from what this one teaches; with learn='first' it teaches most"
        return "one run with calibrate=True, then magpolicy.keep(handle.calibration), measures this model"

    @property
    def given(self) -> Any:
        return self.preset or self.calibration or self.curve

    @property
    def streams(self) -> tuple[str, ...]:
        return (SINGLE,) if self.curve is None else self.curve.streams

    @property
    def levels(self) -> tuple[float, ...]:
        return () if self.curve is None or self.curve.assumed else self.curve.levels

    @property
    def forecast(self) -> str | None:
        return self.target.forecast

    @property
    def expert_boundary(self) -> float | None:
        return expert_boundary_of(self.preset)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        if steps is None and sigmas is None and Taught.of(self.calibration) is not None:  # earlier runs say nothing of this one
            raise ArgumentError("steps=None: how long is the run? try handle.run(steps=28)")
        return run_length(steps, sigmas, None if self.curve is None else self.curve.steps)

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        key = (steps, sigmas, first, self.target.expert_step, repr(self.target.guidance))
        prepared: PreparedRun = latest(self._last, key, lambda: self._plan(steps, sigmas, first))
        return prepared

    def with_streams(self, bases: Mapping[str, str]) -> RunConfig:
        if self.curve is None:
            return self
        curve = with_more_streams(self.curve, bases)
        return self if curve is self.curve else evolve(self, curve=curve, last={})

    @property
    def learns(self) -> bool:
        return self.calibration is None or Taught.of(self.calibration) is not None

    def taught_by(self, calibration: Calibration) -> RunConfig:
        if not self.learns:
            return self
        source = f"a plan from {in_words(calibration)}"
        return evolve(self, curve=calibration.curve, calibration=calibration, preset=None, source=source, last={})

    def while_learning(self) -> RunConfig:
        return evolve(self, learning=True, last={})

    def with_expert_step(self, step: int | None) -> RunConfig:
        if step is None or self.target.expert_step is not None:
            return self
        return evolve(self, target=evolve(self.target, expert_step=step))

    def with_guidance(self, scale: float | None) -> RunConfig:
        # A scale says nothing of how three branches are combined.
        if scale is None or self.target.guidance is not None or len(self.streams) != 2:
            return self
        return evolve(self, target=evolve(self.target, guidance=scale))

    def _plan(self, steps: int, sigmas: Levels, first: int) -> PreparedRun:
        from magpolicy.planning._nearest import fitted, solve_nearest  # late: a run of the rule needs none of it
        from magpolicy.planning._planner import solve

        target, unfit = (self.target, "") if self.nearest is None else fitted(self.target, steps)
        source = self.given
        if self.calibration is not None and Taught.of(self.calibration) is not None:
            source = at_levels_of(self.calibration, steps, sigmas)
            sigmas = source.sigmas
        request = PlanRequest(
            source=source,
            target=target,
            steps=steps if sigmas is None else None,
            sigmas=sigmas,
            part=(first, steps) if first else None,
        )
        doubtful = None if is_measured(self.calibration) else flow_levels(steps, sigmas)
        if self.nearest is None:
            return evolve(self.following(solve(request.problem(), target)), request=request, doubtful=doubtful)
        try:
            schedule, differs = solve_nearest(request.problem(), target)
        except ArgumentError as error:  # what could not be seen before the length was known
            return PreparedRun.in_full(steps, f"{error}: every step of this run computes")
        words = "; ".join(filter(None, (unfit, differs)))
        return evolve(self.following(schedule), request=request, doubtful=doubtful, differs=words)
