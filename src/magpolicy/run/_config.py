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
from magpolicy.calibration._forecast import Forecast, Hold, Linear, Planned
from magpolicy.catalog._presets import Preset
from magpolicy.planning._problem import PlanRequest
from magpolicy.policy._curve import SINGLE, Curve
from magpolicy.policy._flow import flow_sigmas
from magpolicy.policy._policy import Policy, ScheduledPolicy
from magpolicy.schedule._schedule import Schedule
from magpolicy.schedule._stretch import stretched

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
    doubtful: tuple[float, ...] | None = None
    """(N,) flow noise levels of the whole run, where forecasts are what the general prior expects and nobody measured."""
    differs: str = ""
    """In what the run differs from what was asked, in words; empty where it does not."""

    @classmethod
    def in_full(cls, steps: int, why: str = "") -> PreparedRun:
        """A run in which every step computes."""
        return cls(lambda _: ScheduledPolicy((True,) * steps), Hold(), differs=why)


@frozen
class Nearest:
    """Lets a run that the settings do not fit go by what is nearest to them, and tells the user, each thing once."""

    warns: bool = True
    """Whether by a :class:`magpolicy.PlanWarning`; else whoever runs it says it (:attr:`magpolicy.Session.differs`)."""
    _said: set[str] = field(factory=set, eq=False, repr=False)

    def tell(self, words: str) -> None:
        """Tell the user in what a run that begins differs from what was asked."""
        if words and words not in self._said:
            self._said.add(words)
            if self.warns:
                warnings.warn(words, PlanWarning, stacklevel=2)


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
    def by_rule(self) -> bool:
        """Whether the rule decides each evaluation, by the ratios of :attr:`given`."""
        return self.given is not None and not self.schedules

    @property
    def asks_skips(self) -> bool:
        """Whether steps are to be skipped, as far as that is known before a run."""
        return True

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
        return PreparedRun(followers(schedule), Hold() if self.forecast == "hold" else Planned(schedule), schedule)

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

    @property
    def nearest(self) -> Nearest | None:
        """What becomes of a run that the settings do not fit; ``None``: it is an error."""
        return None

    def for_any_run(self, *, warns: bool = True) -> RunConfig:
        """The same, for runs whose lengths are not known ahead: one that the settings do not fit goes by what is nearest to
        them, and nothing is an error.

        Args:
            warns: whether a :class:`magpolicy.PlanWarning` says so, each thing once; :attr:`PreparedRun.differs` always does.
        """
        return self


@frozen(kw_only=True)
class FromSource(RunConfig):
    """What is made from a source."""

    source: str
    preset: Preset | None = None
    calibration: Calibration | None = None
    nearest: Nearest | None = None
    _last: dict[Any, Any] = field(factory=dict, eq=False, repr=False)

    def for_any_run(self, *, warns: bool = True) -> RunConfig:
        return evolve(self, nearest=Nearest(warns), last={})


@frozen(kw_only=True)
class Fixed(RunConfig):
    """A schedule that was given."""

    schedule: Schedule
    forecast: str | None = None
    damping: float = 1.0
    nearest: Nearest | None = None

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
        count, levels = run_length(steps, sigmas, end)
        if count != end and self.nearest is None:
            raise ArgumentError(f"steps={count} contradicts the schedule's {end}; make a schedule for it")
        return count, levels

    def for_any_run(self, *, warns: bool = True) -> RunConfig:
        return evolve(self, nearest=Nearest(warns))

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        end = self.schedule.first_step + self.schedule.steps
        if steps == end or self.nearest is None:
            return self._by(self.schedule, steps, sigmas)
        schedule = stretched(self.schedule, steps)
        words = (
            f"the schedule given has {end} steps, this run {steps}: it is stretched to {steps}, without its forecasts, and "
            f"{schedule.computed} of them compute; one made for {steps} steps serves better: magpolicy.plan(..., steps={steps})"
        )
        return evolve(self._by(schedule, steps, sigmas), differs=words)

    def _by(self, schedule: Schedule, steps: int, sigmas: Levels) -> PreparedRun:
        if self.forecast == "linear":
            levels = flow_sigmas(steps) if sigmas is None else sigmas
            return PreparedRun(followers(schedule), Linear(levels, self.damping), schedule)
        return self.following(schedule)


@frozen
class Calibrate(RunConfig):
    """Every step computes."""

    source: str = ""
    reads: Reading = "shares"
    asks_skips = False

    @property
    def given(self) -> Any:
        return None

    @property
    def streams(self) -> tuple[str, ...]:
        return (SINGLE,)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[int, Levels]:
        return run_length(steps, sigmas, 1)

    def prepare(self, steps: int, sigmas: Levels, first: int = 0) -> PreparedRun:
        return PreparedRun.in_full(steps)


def followers(schedule: Schedule) -> Callable[[str], ScheduledPolicy]:
    """Policies that follow a schedule; a stream it does not know follows its first one."""
    before = (True,) * schedule.first_step
    masks = dict(zip(schedule.streams, schedule.masks, strict=True))
    return lambda stream: ScheduledPolicy(before + masks.get(stream, schedule.masks[0]))


_PREPARED_KEPT = 16


def latest(last: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
    """What ``make`` makes, made anew only for another key: most runs are like one of the last few."""
    found = last.get(key)
    if found is None:
        found = make()
        if len(last) >= _PREPARED_KEPT:
            last.clear()
        last[key] = found  # another thread may have made it too: they are alike
    return found


def run_length(steps: int | None, sigmas: Sequence[float] | None, default: int | None) -> tuple[int, Levels]:
    levels = _checks.run_levels(steps, sigmas)
    if levels is None:
        return _checks.steps(default if steps is None else steps, example=str(default or 28)), None
    return len(levels), levels


def expert_boundary_of(preset: Preset | None) -> float | None:
    """The noise level at which the second of two experts takes over, if the preset says it."""
    known = None if preset is None else preset.expert_boundary
    return float(known["boundary"]) if known and "boundary" in known else None


def with_more_streams(curve: Curve, bases: Mapping[str, str]) -> Curve:
    """``curve`` with the ratios of known streams under more names; itself if there is nothing to add."""
    known = curve.streams
    more = {name: curve.of(base) for name, base in bases.items() if name not in known and base in known}
    if len(known) < 2 or not more:
        return curve
    return Curve({**curve.ratios, **more}, sigmas=curve.sigmas, first_step=curve.first_step)
