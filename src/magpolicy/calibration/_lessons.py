"""What runs taught of a model, as one calibration: which run is worth more, and what is planned from.

A run in full is worth more than runs that skipped, and a run of the whole schedule more than one of a part of it. What is worth
more takes the place of what was known; of equally good runs at the same noise levels, up to ``MOST`` are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._completed import MeasuredPart, completed, read_at
from magpolicy.calibration._mixed import mixed_with_prior

KEY = "taught"
"""Where the provenance of a learned calibration has what taught it."""
MOST = 4
"""Runs that are averaged."""
SHORTEST = 4
"""Evaluations of the shortest run that teaches."""
PRIOR_SHARE = 0.03
"""What one run shows is one sample. This share of the general prior makes plans from it hold for others: in the lab it is worth
up to 9 dB, and loses none (benchmarks/quality/learning.py)."""


@frozen(order=True)
class Taught:
    """How much runs taught; what is greater is worth more."""

    whole: bool
    """Whether they covered the whole schedule."""
    full: bool
    """Whether every evaluation was computed."""
    computed: int
    """Evaluations that the one which computed most computed."""
    runs: int = 1
    """How many there were."""

    @classmethod
    def of(cls, calibration: Calibration | None) -> Taught | None:
        """What taught a calibration; ``None`` if it was not learned."""
        values = None if calibration is None else calibration.provenance.get(KEY)
        try:
            return cls(**values) if isinstance(values, Mapping) else None
        except TypeError:  # of another version
            return None

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for provenance."""
        return {"whole": self.whole, "full": self.full, "computed": self.computed, "runs": self.runs}

    @property
    def in_words(self) -> str:
        """Who taught."""
        kind = "in full" if self.full else "that skipped steps"
        runs = f"a run {kind}" if self.runs == 1 else f"{self.runs} runs {kind}"
        return runs if self.whole else f"{runs}, of a part of the schedule,"


def lesson_of(
    measured: MeasuredPart,
    levels: tuple[float, ...],
    *,
    whole: bool = True,
    evaluations: int,
    expert_steps: tuple[int, ...] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Calibration:
    """What one run taught.

    Args:
        measured: what it computed.
        levels: (N,) the noise levels of its schedule.
        whole: whether it covered the whole schedule.
        evaluations: evaluations of all streams that were made or skipped.
        expert_steps: as in :func:`completed`.
        provenance: how the run was made.

    Raises:
        ArgumentError: levels that do not fit.
    """
    computed = len(measured.places)
    taught = Taught(whole=whole, full=computed == evaluations, computed=computed)
    return completed(measured, levels, expert_steps=expert_steps, provenance={**(provenance or {}), KEY: taught.to_dict()})


def can_teach(
    known: Calibration | None, *, whole: bool, full: bool, levels: tuple[float, ...] | None, steps: int = SHORTEST
) -> bool:
    """Whether a run that is to come, of so many steps, at these noise levels if they are known, may teach something new."""
    if steps < SHORTEST:
        return False
    have = Taught.of(known)
    if known is None or have is None:
        return True
    rank = whole, full
    if rank != (have.whole, have.full):
        return rank > (have.whole, have.full)
    return not full and (levels != known.sigmas or have.runs < MOST)


def joined(known: Calibration | None, lesson: Calibration) -> Calibration | None:
    """What is known after a run; ``None`` if that is what was known before."""
    have, new = Taught.of(known), Taught.of(lesson)
    if known is None or have is None or new is None:
        return lesson
    if (new.whole, new.full) != (have.whole, have.full):
        return lesson if new > have else None
    if known.sigmas != lesson.sigmas or set(known.streams) != set(lesson.streams):
        return lesson if new.computed > have.computed else None
    if have.runs >= MOST:
        return None
    taught = evolve(new, computed=max(have.computed, new.computed), runs=have.runs + new.runs)
    try:
        return evolve(Calibration.merge([known, lesson]), provenance={**lesson.provenance, KEY: taught.to_dict()})
    except ArgumentError:
        return lesson


def to_plan_from(known: Calibration) -> Calibration:
    """What runs are planned from, where so much is known."""
    return mixed_with_prior(known, PRIOR_SHARE)


def at_levels_of(known: Calibration, steps: int, sigmas: tuple[float, ...] | None) -> Calibration:
    """What is known, for a run at these noise levels, or of so many steps on the known schedule."""
    return read_at(known, known.curve.levels_for(steps) if sigmas is None else sigmas)
