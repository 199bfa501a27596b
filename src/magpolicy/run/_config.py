"""What decides in a run: the rule, a plan, a schedule that was given, or nothing, where every step computes.

Each is a value of checked settings. It makes what a run goes by once the run's length is known, and can serve many runs.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PlanWarning
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._forecast import Forecast, Hold, Linear, Measured, Planned
from magpolicy.calibration._lessons import Taught, at_levels_of, to_plan_from
from magpolicy.catalog._learned import in_words
from magpolicy.catalog._presets import Preset
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from magpolicy.policy._curve import SINGLE, Curve
from magpolicy.policy._policy import MagPolicy, Policy, ScheduledPolicy
from magpolicy.policy._semantics import Semantics
from magpolicy.policy._step_table import Limits, build_step_tables
from magpolicy.schedule._schedule import Schedule

Joint = Literal["all", "any", "first"]
Reading = Literal["noise", "shares", "count"]
Levels = tuple[float, ...] | None
"""A run's noise levels; ``None``: only their number is known."""


@frozen
class PreparedRun:
    """What a run of known length goes by."""

    policy: Callable[[str], Policy]
    """Makes the policy of a stream, by name. A stream that the source does not know goes as its first one."""
    forecast: Forecast
    schedule: Schedule | None = None
    """The run's schedule, where it is known ahead."""
    request: PlanRequest | None = None
    """What that was planned from and for, where it was planned here."""


class RunConfig(abc.ABC):
    """Settings of a run, checked. Made by :func:`magpolicy.adapter.resolve`."""

    __slots__ = ()

    @property
    def source(self) -> str:
        """What decides, in words; empty if every step computes."""
        return ""

    @property
    def advice(self) -> str:
        """One thing to do that would bring runs closer to the full run at the same speed, in words; empty if there is none."""
        return ""

    @property
    def preset(self) -> Preset | None:
        """The preset that the settings come from."""
        return None

    @property
    def forecast(self) -> str | None:
        """The forecast that was given; ``None``: that of the source."""
        return None

    @property
    def joint(self) -> Joint:
        """When a call of several streams skips (:attr:`magpolicy.Semantics.joint`)."""
        return "all"

    @property
    def batched(self) -> bool:
        """Whether one call holds all streams, if the host does not say it."""
        return False

    @property
    def reads(self) -> Reading:
        """How evaluations are read: by noise level, by share of the run, or by number alone."""
        return "shares"

    @property
    def schedules(self) -> bool:
        """Whether a run's schedule is settled before it begins."""
        return False

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels that the source was measured at; empty if it has none."""
        return ()

    @property
    def expert_boundary(self) -> float | None:
        """The noise level at which the second of two experts takes over, if the preset says it."""
        return None

    @property
    @abc.abstractmethod
    def given(self) -> Any:
        """The preset, calibration, curve or schedule that it was made from; ``None`` if there is none."""

    @property
    @abc.abstractmethod
    def streams(self) -> tuple[str, ...]:
        """The streams of the source."""

    @abc.abstractmethod
    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        """Steps and noise levels of a run, checked against each other; without either, the source's own number of steps.

        Raises:
            ArgumentError: they contradict each other or the source, or nothing says how long the run is.
        """

    @abc.abstractmethod
    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        """What decides in a run of that length, which begins at position ``first`` of it.

        Raises:
            ArgumentError: the settings do not fit such a run.
        """

    def following(self, schedule: Schedule) -> PreparedRun:
        """What decides in the rest of a run that leaves its schedule for this one."""
        return PreparedRun(_followers(schedule), Hold() if self.forecast == "hold" else Planned(schedule), schedule)

    def with_expert_step(self, step: int | None) -> RunConfig:
        """The same, for a run whose second expert begins at ``step``, unless the settings say the step."""
        return self

    def with_guidance(self, scale: float | None) -> RunConfig:
        """The same, for a run with that guidance scale, if it matters and the settings do not say it."""
        return self

    def with_streams(self, bases: Mapping[str, str]) -> RunConfig:
        """The same, with more streams: each name is mapped to the stream of the source whose ratios it uses."""
        return self

    @property
    def learns(self) -> bool:
        """Whether later runs can be planned from what runs show: it is a plan, and not by a calibration of the user's."""
        return False

    def while_learning(self) -> RunConfig:
        """The same, for runs that are measured."""
        return self

    def taught_by(self, calibration: Calibration) -> RunConfig:
        """The same, planned from what runs of the model taught (:func:`magpolicy.adapter.lesson_of`), if it learns."""
        return self

    def for_any_run(self) -> RunConfig:
        """The same, for runs whose lengths are not known ahead: one that cannot be planned for the target gets the nearest
        plan and a :class:`magpolicy.PlanWarning`, once."""
        return self


@frozen(kw_only=True)
class FromSource(RunConfig):
    """What is made from a source."""

    source: str
    preset: Preset | None = None
    calibration: Calibration | None = None
    _last: dict[Any, Any] = field(factory=dict, eq=False, repr=False)


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
    def batched(self) -> bool:
        return self.semantics.batched

    @property
    def reads(self) -> Reading:
        return _reading(self.curve) if self.semantics.interpolation == "noise_level" else "count"

    @property
    def expert_boundary(self) -> float | None:
        return None if self.reads == "count" or self.semantics.experts == "one" else _boundary(self.preset)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        count, levels = _length(steps, sigmas, self.curve.steps)
        if levels is not None and self.semantics.interpolation == "noise_level":
            self.curve._check_reach(levels)
        return count, levels

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        tables, forecast = _latest(self._last, (steps, sigmas, self.limits.expert_step), lambda: self._lay_out(steps, sigmas))
        fallback, rule, semantics = next(iter(tables.values())), (self.threshold, self.max_skips), self.semantics
        return PreparedRun(lambda stream: MagPolicy._from_table(tables.get(stream, fallback), rule, semantics), forecast)

    def with_streams(self, bases: Mapping[str, str]) -> RunConfig:
        curve = _with_streams(self.curve, bases)
        return self if curve is self.curve else evolve(self, curve=curve, last={})

    def with_expert_step(self, step: int | None) -> RunConfig:
        if step is None or self.limits.expert_step is not None:
            return self
        return evolve(self, limits=evolve(self.limits, expert_step=step))

    def _lay_out(self, steps: int, sigmas: Levels) -> Any:
        limits = self.limits
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


@frozen(kw_only=True)
class Plan(FromSource):
    """A target: each run is planned for it once its length is known."""

    curve: Curve | None
    """``None``: nothing is known of the model."""
    target: PlanTarget
    nearest: bool = False
    """Whether a run that cannot be planned for the target gets the nearest plan."""
    learning: bool = False
    """Whether the run is measured for later ones."""
    _warned: set[str] = field(factory=set, eq=False, repr=False)

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
        return _boundary(self.preset)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        if steps is None and sigmas is None and Taught.of(self.calibration) is not None:  # earlier runs say nothing of this one
            raise ArgumentError("steps=None: how long is the run? try handle.run(steps=28)")
        return _length(steps, sigmas, None if self.curve is None else self.curve.steps)

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        key = (steps, sigmas, first, self.target.expert_step, repr(self.target.guidance))
        prepared: PreparedRun = _latest(self._last, key, lambda: self._plan(steps, sigmas, first))
        return prepared

    def with_streams(self, bases: Mapping[str, str]) -> RunConfig:
        if self.curve is None:
            return self
        curve = _with_streams(self.curve, bases)
        return self if curve is self.curve else evolve(self, curve=curve, last={})

    def for_any_run(self) -> RunConfig:
        return evolve(self, nearest=True)

    @property
    def learns(self) -> bool:
        return self.calibration is None or Taught.of(self.calibration) is not None

    def taught_by(self, calibration: Calibration) -> RunConfig:
        if not self.learns:
            return self
        known, source = to_plan_from(calibration), f"a plan from {in_words(calibration)}"
        return evolve(self, curve=known.curve, calibration=known, preset=None, source=source, last={})

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
        from magpolicy.planning._nearest import solve_nearest  # late: a run of the rule needs none of it
        from magpolicy.planning._planner import solve

        source = self.given
        if self.calibration is not None and Taught.of(self.calibration) is not None:
            source = at_levels_of(self.calibration, steps, sigmas)
            sigmas = source.sigmas
        request = PlanRequest(
            source=source,
            target=self.target,
            steps=steps if sigmas is None else None,
            sigmas=sigmas,
            part=(first, steps) if first else None,
        )
        if not self.nearest:
            return evolve(self.following(solve(request.problem(), self.target)), request=request)
        schedule, differs = solve_nearest(request.problem(), self.target)
        if differs and differs not in self._warned:
            self._warned.add(differs)
            warnings.warn(differs, PlanWarning, stacklevel=2)
        return evolve(self.following(schedule), request=request)


@frozen(kw_only=True)
class Fixed(RunConfig):
    """A schedule that was given."""

    schedule: Schedule
    forecast: str | None = None
    damping: float = 1.0

    source = "the schedule given"
    reads = "count"
    schedules = True

    @property
    def given(self) -> Any:
        return self.schedule

    @property
    def streams(self) -> tuple[str, ...]:
        return self.schedule.streams

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        end = self.schedule.first_step + self.schedule.steps
        count, levels = _length(steps, sigmas, end)
        if count != end:
            raise ArgumentError(f"steps={count} contradicts the schedule's {end}; make a schedule for it")
        return count, levels

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        if self.forecast == "linear":
            levels = tuple([1 - i / steps for i in range(steps)]) if sigmas is None else sigmas
            return PreparedRun(_followers(self.schedule), Linear(levels, self.damping), self.schedule)
        return self.following(self.schedule)


@frozen
class Calibrate(RunConfig):
    """Every step computes."""

    source: str = ""
    reads: Reading = "shares"

    @property
    def given(self) -> Any:
        return None

    @property
    def streams(self) -> tuple[str, ...]:
        return (SINGLE,)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        return _length(steps, sigmas, 1)

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        return PreparedRun(lambda _: ScheduledPolicy((True,) * steps), Hold())


def _followers(schedule: Schedule) -> Callable[[str], ScheduledPolicy]:
    """Policies that follow a schedule; a stream it does not know follows its first one."""
    before = (True,) * schedule.first_step
    masks = dict(zip(schedule.streams, schedule.masks, strict=True))
    return lambda stream: ScheduledPolicy(before + masks.get(stream, schedule.masks[0]))


def _latest(last: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` makes, made anew only for another key: the next run is most often like the last."""
    found = last.get(key)
    if found is None:
        found = make()
        last.clear()
        last[key] = found
    return found


def _length(steps: int | None, sigmas: Sequence[float] | None, default: int | None) -> tuple[int, Levels]:
    levels = _checks.run_levels(steps, sigmas)
    if levels is None:
        return _checks.steps(default if steps is None else steps, example=str(default or 28)), None
    return len(levels), levels


def _reading(curve: Curve) -> Literal["noise", "shares"]:
    return "shares" if curve.assumed else "noise"


def _boundary(preset: Preset | None) -> float | None:
    known = None if preset is None else preset.expert_boundary
    return float(known["boundary"]) if known and "boundary" in known else None


def _with_streams(curve: Curve, bases: Mapping[str, str]) -> Curve:
    """``curve`` with the ratios of known streams under more names; itself if there is nothing to add."""
    known = curve.streams
    more = {name: curve.of(base) for name, base in bases.items() if name not in known and base in known}
    if len(known) < 2 or not more:
        return curve
    return Curve({**curve.ratios, **more}, sigmas=curve.sigmas, first_step=curve.first_step)
