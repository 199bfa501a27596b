"""What runs taught of a model, as one calibration: which run is worth more, and what is planned from.

A run of the whole schedule is worth more than one of a part of it. Else a run is worth as much as the steps that it computed,
and twice as much if it skipped none: no forecast of its own disturbed it. What is worth more takes the place of what was known;
of runs that skipped, at the same noise levels, up to ``MOST`` are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._completed import MeasuredPart, completed, read_at
from magpolicy.calibration._prior import PRIOR_SHARE

KEY = "taught"
"""Where the provenance of a learned calibration has what taught it."""
MOST = 4
"""Runs that are averaged."""
SHORTEST = 4
"""Evaluations of the shortest run that teaches."""


@frozen
class Taught:
    """How much runs taught."""

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
    def worth(self) -> tuple[bool, int]:
        """What is greater is worth more."""
        return self.whole, self.computed * (2 if self.full else 1)

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
    made = completed(measured, levels, expert_steps=expert_steps, provenance={**(provenance or {}), KEY: taught.to_dict()})
    return evolve(made, prior_share=PRIOR_SHARE)


def can_teach(
    known: Calibration | None, *, whole: bool, full: bool, levels: tuple[float, ...] | None, steps: int = SHORTEST
) -> bool:
    """Whether a run that is to come, of so many steps, at these noise levels if they are known, may teach something new."""
    if steps < SHORTEST:
        return False
    have = Taught.of(known)
    if known is None or have is None:
        return True
    if not full and (whole, full) == (have.whole, have.full) and levels == known.sigmas:
        return have.runs < MOST
    return _of_steps(steps, whole, full, known).worth > have.worth


def should_compute_all(known: Calibration | None, *, whole: bool, steps: int | None) -> bool:
    """Whether a run of so many steps should skip none for what that teaches: nothing is known, or half as much at most.

    ``None``: how many steps it has is not known yet.
    """
    if steps is not None and steps < SHORTEST:
        return False
    have = Taught.of(known)
    if known is None or have is None or whole > have.whole:
        return True
    if steps is None:
        return whole is have.whole and not have.full
    return _of_steps(steps, whole, True, known).worth >= (have.whole, 2 * have.worth[1])


def _of_steps(steps: int, whole: bool, full: bool, known: Calibration) -> Taught:
    """What a run of so many steps teaches, at most: all that it evaluates."""
    return Taught(whole=whole, full=full, computed=steps * len(known.streams))


def joined(known: Calibration | None, lesson: Calibration) -> Calibration | None:
    """What is known after a run; ``None`` if that is what was known before."""
    have, new = Taught.of(known), Taught.of(lesson)
    if known is None or have is None or new is None:
        return lesson
    alike = (new.whole, new.full, lesson.sigmas) == (have.whole, have.full, known.sigmas)
    if not alike or set(known.streams) != set(lesson.streams):
        return lesson if new.worth > have.worth else None
    if have.runs >= MOST:
        return None
    taught = evolve(new, computed=max(have.computed, new.computed), runs=have.runs + new.runs)
    try:
        return evolve(Calibration.merge([known, lesson]), provenance={**lesson.provenance, KEY: taught.to_dict()})
    except ArgumentError:
        return lesson


def at_levels_of(known: Calibration, steps: int, sigmas: tuple[float, ...] | None) -> Calibration:
    """What is known, for a run at these noise levels, or of so many steps on the known schedule."""
    return read_at(known, known.curve.levels_for(steps) if sigmas is None else sigmas)
