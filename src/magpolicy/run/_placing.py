"""Where a run lies on the noise schedule, and how that is told to what decides: by noise level, by share, or by number.

Hosts know evaluations and their noise levels; a curve knows the levels it was measured at, or none; an implementation that
counts steps knows numbers. Here these are brought together, once for all hosts, and so is the switch of two experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen

from magpolicy.planning._safeguard import Safeguard
from magpolicy.run._config import RunConfig
from magpolicy.run._planned import Plan
from magpolicy.run._session import Session
from magpolicy.run._simulate import simulate_config
from magpolicy.schedule._schedule import Schedule

_FLOOR = 1e-6  # an evaluation at 0 is an evaluation, not the end of a list
_NEAR = 1e-5  # levels as near as this are those of the curve: hosts compute in float32


@frozen
class ScheduleSpan:
    """The evaluations of a run, as its host gives them, and their positions in the whole noise schedule."""

    levels: tuple[float, ...]
    """The place of each evaluation on the model's own schedule, as a share of it: 1 to 0."""
    flow: tuple[float, ...]
    """The noise level of each evaluation, as flow matching counts it (else as ``levels``); empty where it is not known."""
    first: int = 0
    """Evaluations of the whole schedule before this run."""
    after: int = 0
    """Evaluations after it."""
    even: bool = True
    """Evenly spaced steps: the whole schedule is known by its number alone."""
    expert_step: int | None = None
    """Evaluations of this run that the first of two experts makes, where the host says."""

    @property
    def steps(self) -> int:
        """Evaluations of the whole schedule."""
        return self.first + len(self.levels) + self.after

    @property
    def partial(self) -> bool:
        """Whether the run is only a part of the schedule."""
        return bool(self.first or self.after)

    def whole(self, levels: Sequence[float], top: float = 1.0) -> tuple[float, ...]:
        """The ``levels`` of this run, and before and after them evenly spaced ones for the rest of the schedule."""
        begin, end = levels[0], min(levels[-1], levels[0])
        before = np.linspace(max(top, begin), begin, self.first, endpoint=False) if self.first else ()
        behind = [end * (1 - (i + 1) / (self.after + 1)) for i in range(self.after)]
        return tuple(max(float(v), _FLOOR) for v in (*before, *levels, *behind))


@frozen
class Placement:
    """A run as its settings see it: its steps, its noise levels, and where it begins."""

    config: RunConfig
    """The settings, the switch of two experts settled."""
    steps: int | None
    """Evaluations of the whole schedule, where they are known by number alone."""
    sigmas: tuple[float, ...] | None
    """Or their noise levels."""
    first: int
    """Where in it the run begins."""
    count: int
    """Evaluations of the run."""

    def session(self, safeguard: float | bool | Safeguard | None = None) -> Session:
        """A session for the run, to be begun at :attr:`first`.

        Raises:
            ArgumentError: the settings do not fit it.
        """
        return Session.from_config(self.config, self.steps, self.sigmas, safeguard)

    @property
    def differs(self) -> str:
        """In what the run will differ from what was asked, in words; empty where it does not.

        Raises:
            ArgumentError: the settings do not fit it.
        """
        return self.config.prepare(*self.config.length(self.steps, self.sigmas), self.first).differs

    def simulate(self) -> Schedule:
        """The schedule that the run will follow.

        Raises:
            ArgumentError: the settings do not fit it.
        """
        return simulate_config(self.config, self.steps, self.sigmas, part=(self.first, self.first + self.count))


def place(config: RunConfig, span: ScheduleSpan) -> Placement:
    """How to read the settings for a run that covers ``span``."""
    count, switch = len(span.levels), _expert_step(config, span)
    if config.reads == "count":
        return Placement(config.with_expert_step(switch), count, None, 0, count)  # counted are the steps of this run
    config = config.with_expert_step(None if switch is None else span.first + switch)
    if config.reads == "shares" and not span.even:
        return Placement(config, None, span.whole(span.levels), span.first, count)
    if config.reads == "shares" or not span.flow:
        return Placement(config, span.steps, None, span.first, count)
    levels = _levels(span, config.levels)
    if isinstance(config, Plan):  # a target is of the run itself: what comes after it is planned by whoever runs it
        levels = levels[: span.first + count]
    return Placement(config, None, levels, span.first, count)


def _expert_step(config: RunConfig, span: ScheduleSpan) -> int | None:
    """Evaluations of the first expert: as the host says, or by the noise level that the preset says."""
    if span.expert_step is not None or config.expert_boundary is None or not span.flow:
        return span.expert_step
    return sum(level >= config.expert_boundary for level in span.flow)


def _levels(span: ScheduleSpan, known: tuple[float, ...]) -> tuple[float, ...]:
    """The noise levels of the whole schedule; those that the curve knows, where they are the same but for rounding."""
    levels = span.whole(span.flow, known[0] if known else 1.0)
    same = len(levels) == len(known) and all(abs(a - b) <= _NEAR for a, b in zip(levels, known, strict=True))
    return known if same else levels
