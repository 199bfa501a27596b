"""What a run is made from: a source of ratios and settings, checked once, and the policies of each run made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._forecast import Forecast, Hold, Linear, Measured, Planned, check_forecast
from magpolicy.catalog._matching import PresetMatches, named
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._source import Source
from magpolicy.planning._objective import Objective
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from magpolicy.policy._curve import Curve
from magpolicy.policy._policy import MagPolicy, Policy, ScheduledPolicy, check_rule
from magpolicy.policy._semantics import Semantics, semantics
from magpolicy.policy._step_table import Limits, StepTable, build_step_tables
from magpolicy.schedule._schedule import Schedule


@frozen(kw_only=True)
class RunConfig:
    """A checked source and settings; makes the policies of a run once its length is known."""

    curve: Curve
    rule: tuple[float, int]
    limits: Limits
    how: Semantics
    preset: Preset | None = None
    schedule: Schedule | None = None
    calibration: Calibration | None = None
    forecast: str | None = None
    damping: float = 1.0
    goal: PlanTarget | None = None
    """With one, each run is planned for it once its length is known, and the rule has no say."""
    source: str = ""
    """What decides, in words; empty where every step computes."""
    _laid: dict[Any, Any] = field(factory=dict, eq=False, repr=False)

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams the source knows."""
        return self.curve.streams if self.schedule is None else self.schedule.streams

    def planned(self, steps: int, sigmas: tuple[float, ...] | None, first: int = 0) -> Schedule | None:
        """The schedule of a run of that length that begins at ``first``; ``None`` where the rule decides.

        Raises:
            ArgumentError: the goal cannot be had in such a run.
        """
        if self.goal is None:
            return self.schedule
        key = ("plan", steps, sigmas, first)
        if key not in self._laid:
            from magpolicy.planning._planner import solve

            request = self.plan_request(steps, sigmas, first)
            assert request is not None
            self._laid.clear()
            self._laid[key] = solve(request.problem(), request.target)
        schedule: Schedule = self._laid[key]
        return schedule

    def plan_request(self, steps: int, sigmas: tuple[float, ...] | None, first: int = 0) -> PlanRequest | None:
        """What such a run is planned from and for; ``None`` where it is not."""
        if self.goal is None:
            return None
        switch = self.limits.expert_step
        return PlanRequest(
            source=self.preset or self.calibration or self.curve,
            target=self.goal if switch is None else evolve(self.goal, expert_step=switch),
            steps=steps if sigmas is None else None,
            sigmas=sigmas,
            part=(first, steps) if first else None,
        )

    def switching(self, expert_step: int | None) -> RunConfig:
        """The same for a run that is known to go on to its second expert at ``expert_step``, unless the settings say where."""
        if expert_step is None or self.limits.expert_step is not None:
            return self
        return evolve(self, limits=evolve(self.limits, expert_step=expert_step), laid={})

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, tuple[float, ...] | None]:
        """Steps and noise levels of a run, checked against each other."""
        known = None if sigmas is None else _checks.levels("sigmas", sigmas)
        if self.schedule is not None:
            wanted = steps if known is None else len(known)
            if wanted not in (None, _end(self.schedule)):
                raise ArgumentError(f"steps={wanted} contradicts the schedule's {_end(self.schedule)}; make a schedule for it")
        if known is not None:
            listed = len(sigmas) if isinstance(sigmas, Sized) else len(known)  # with or without the final 0
            if steps is not None and steps not in (len(known), listed):
                raise ArgumentError(f"steps={steps} contradicts sigmas with {len(known)} levels; give one of them")
            if self.how.interpolation == "noise_level" and self.schedule is None:
                self.curve._check_reach(known)
            return len(known), known
        default = self.curve.steps if self.schedule is None else _end(self.schedule)
        return (default if steps is None else _checks.steps(steps, example=str(default))), None

    def policies(self, steps: int, sigmas: tuple[float, ...] | None, first: int = 0) -> Callable[[str], Policy]:
        """How to make the policy of a stream, by name; unknown streams read the first one's ratios.

        Raises:
            ArgumentError: the settings do not fit a run of that length.
        """
        schedule = self.planned(steps, sigmas, first)
        if schedule is not None:
            return following(schedule)
        tracks = self._tracks(steps, sigmas)
        fallback = next(iter(tracks.values()))
        return lambda s: MagPolicy._from_track(tracks.get(s, fallback), self.rule, self.how)

    def forecaster(self, steps: int, sigmas: tuple[float, ...] | None, first: int = 0) -> Forecast:
        """What tells a skip's forecast coefficient in a run of that length."""
        if self.forecast != "hold" and self.goal is not None:
            schedule = self.planned(steps, sigmas, first)
            assert schedule is not None
            return Planned(schedule)
        if self.forecast == "linear":
            return Linear(self.curve.levels_for(steps) if sigmas is None else sigmas, self.damping)
        if self.forecast == "calibrated" and self.calibration is not None:
            return Measured(
                self.calibration.resample(steps=steps) if sigmas is None else self.calibration.resample(sigmas=sigmas)
            )
        if self.forecast != "hold" and self.schedule is not None:
            return Planned(self.schedule)
        return Hold()

    def _tracks(self, steps: int, sigmas: tuple[float, ...] | None) -> dict[str, StepTable]:
        key = (steps, sigmas)
        if key not in self._laid:
            self._laid.clear()  # the next run is most often like the last; nothing else is worth keeping
            limits = self.limits
            if limits.expert_step is None and self.preset is not None and self.how.experts != "one":
                limits = evolve(limits, expert_step=self._switch(steps, sigmas))
            self._laid[key] = build_step_tables(self.curve, steps, sigmas, limits, self.how)
        laid: dict[str, StepTable] = self._laid[key]
        return laid

    def _switch(self, steps: int, sigmas: tuple[float, ...] | None) -> int | None:
        boundary = self.preset.expert_boundary if self.preset else None
        if sigmas is not None and boundary and "boundary" in boundary:
            limit = float(boundary["boundary"])
            return sum(s >= limit for s in sigmas)
        return self.preset.expert_step(steps) if self.preset else None


def _end(schedule: Schedule) -> int:
    return schedule.first_step + schedule.steps


def following(schedule: Schedule) -> Callable[[str], ScheduledPolicy]:
    """Policies that follow a schedule; a stream it does not know follows its first one."""
    before = (True,) * schedule.first_step
    return lambda s: ScheduledPolicy(before + schedule.masks[schedule._row_of(s)])


def resolve(
    source: Source | Schedule | PresetMatches,
    *,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    forced: Iterable[int] | None = None,
    semantics: str | Semantics | None = None,
    expert_step: int | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    speedup: float | None = None,
    computed: int | None = None,
    error: float | None = None,
    objective: str | Objective | None = None,
    guidance: float | Mapping[str, float] | None = None,
) -> RunConfig:
    """Check a source and settings; what is not given comes from the preset.

    Where several presets go by a name, the first serves that has what is not given: for a plan the user's calibration, for the
    rule the published table.

    Raises:
        ArgumentError: something is missing, unknown or out of range.
    """
    forecast, factor = check_forecast(forecast, damping)
    aims = {"speedup": speedup, "computed": computed, "error": error, "objective": objective, "guidance": guidance}
    if isinstance(source, Schedule):
        return _of_schedule(
            source,
            forecast,
            factor,
            **aims,
            threshold=threshold,
            max_skips=max_skips,
            retention=retention,
            start_step=start_step or None,
            end_step=end_step,
            forced=forced,
            semantics=semantics,
            expert_step=expert_step,
        )
    planned = any(value is not None for value in aims.values()) or forecast in ("calibrated", "second-order")
    rule = {"threshold": threshold, "max_skips": max_skips, "retention": retention}
    found = _chosen(source, () if planned else [name for name, value in rule.items() if value is None])
    known = found if isinstance(found, Preset) else None
    calibration = found if isinstance(found, Calibration) else known.calibration if known is not None else None
    if any(value is not None for value in aims.values()):
        return _of_goal(
            found,
            calibration,
            {"threshold": threshold, "start_step": start_step or None, "end_step": end_step, "semantics": semantics},
            max_skips=max_skips,
            retention=retention,
            forced=forced,
            expert_step=expert_step,
            forecast=forecast,
            damping=damping,
            **aims,
        )
    if forecast == "calibrated" and calibration is None:
        raise ArgumentError("forecast='calibrated' needs a Calibration or a planned Schedule; try forecast='linear'")
    if forecast == "second-order":
        raise ArgumentError("forecast='second-order' is fitted to a plan; try speedup=2.0, or forecast='calibrated'")
    ratios = found.curve if isinstance(found, Preset | Calibration) else found
    curve = ratios if isinstance(ratios, Curve) else Curve(ratios)
    how = _semantics(semantics, preset=known.name if known else None)
    setting = functools.partial(_setting, known, calibration)
    return RunConfig(
        curve=curve,
        rule=check_rule(setting("threshold", threshold, "0.06"), setting("max_skips", max_skips, "3")),
        limits=Limits(
            retention=_checks.number("retention", setting("retention", retention, "0.2"), 0, 1, example="0.2"),
            start_step=_checks.whole("start_step", start_step, 0, example="0"),
            end_step=end_step,
            forced=None if forced is None else _checks.listed("forced", forced, "steps"),
            expert_step=None if expert_step is None else _checks.whole("expert_step", expert_step, 0, example="26"),
        ),
        how=how,
        preset=known,
        calibration=calibration,
        forecast=forecast,
        damping=factor,
        source=f"the rule on {_what(found)}",
    )


def _chosen(source: Any, wanted: Iterable[str]) -> Any:
    """The source, of several presets the one that has the settings in ``wanted``; the log says which was passed over."""
    several = named(source) if isinstance(source, str | Path) else source
    if not isinstance(several, PresetMatches):
        return several
    chosen = several.with_settings(wanted)
    if chosen is not several[0]:
        import logging

        logging.getLogger("magpolicy").info(
            "magpolicy: by the rule on %s; %s plans with speedup=2.0", _what(chosen), _what(several[0])
        )
    return chosen


def _what(source: Any) -> str:
    if isinstance(source, Preset):
        return f"{'preset' if source.calibration is None else 'calibration'} {source.name!r}"
    if isinstance(source, Calibration):
        return f"calibration {source.name!r}" if source.name else "the calibration given"
    return "the curve given" if isinstance(source, Curve) else "the ratios given"


_semantics = semantics  # the argument of the same name hides it


def _setting(known: Preset | None, calibration: Calibration | None, name: str, value: Any, example: str) -> Any:
    if value is not None:
        return value
    published = getattr(known, name, None)
    if published is None and calibration is not None:
        what = f"calibration {known.name!r}" if known else "a calibration"
        raise ArgumentError(f"{name}=None: {what} carries no settings of the rule; try {name}={example}, or plan: speedup=2.0")
    if published is None:
        whose = f"preset {known.name!r} has no published {name}" if known else "ratios alone carry no settings"
        raise ArgumentError(f"{name}=None: {whose}; try {name}={example}")
    return published


def _of_goal(found: Any, calibration: Calibration | None, beside: Mapping[str, Any], **settings: Any) -> RunConfig:
    for name, value in beside.items():
        if value is not None:
            raise ArgumentError(f"{name}={_checks._short(value)} is for the rule, a target is planned for; leave {name} out")
    goal = PlanTarget(**settings)
    goal.check_target()
    known = found if isinstance(found, Preset) else None
    ratios = found.curve if isinstance(found, Preset | Calibration) else found
    curve = ratios if isinstance(ratios, Curve) else Curve(ratios)
    return RunConfig(
        curve=curve,
        rule=(0.0, 0),
        limits=Limits(retention=0.0),
        how=_semantics(None),
        preset=known,
        calibration=calibration,
        goal=goal,
        forecast=goal.forecast,
        source=f"a plan from {_what(found) if calibration is not None else f'the general prior, norms of {_what(found)}'}",
    )


def _of_schedule(schedule: Schedule, forecast: str | None, damping: float, **settings: Any) -> RunConfig:
    for name, value in settings.items():
        if value is not None:
            raise ArgumentError(f"{name}={value!r} contradicts schedule, which decides already; leave {name} out")
    return RunConfig(
        curve=Curve([1.0]),
        rule=(0.0, 0),
        limits=Limits(retention=0.0),
        how=semantics(None),
        schedule=schedule,
        forecast=forecast,
        damping=damping,
        source="the schedule given",
    )


def always_compute() -> RunConfig:
    """A setup that never skips, for calibration."""
    return RunConfig(curve=Curve([1.0]), rule=(0.0, 0), limits=Limits(retention=1.0), how=semantics(None))
