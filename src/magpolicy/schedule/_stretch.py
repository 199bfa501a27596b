"""A schedule, stretched over a run of another number of steps."""

from __future__ import annotations

import numpy as np

from magpolicy.schedule._schedule import Schedule

FEWEST = 2
"""Steps that compute at least, unless one is asked for: a picture of one step's residual is none."""


def stretched(schedule: Schedule, steps: int) -> Schedule:
    """The same share of steps computes, at the same shares of the run; forecasts hold, since theirs are of other steps.

    Args:
        schedule: of another number of steps. Steps before its first one compute.
        steps: of the run.
    """
    before = (True,) * schedule.first_step
    rows = zip(schedule.streams, schedule.masks, strict=True)
    return Schedule.from_mask({stream: _stretched((*before, *mask), steps) for stream, mask in rows})


def _stretched(mask: tuple[bool, ...], steps: int) -> list[bool]:
    computed = np.flatnonzero(mask)
    count = min(max(round(len(computed) * steps / len(mask)), FEWEST), steps)
    # The k-th of the new ones stands where the same share of the old ones is done.
    shares = np.linspace(0, len(computed), count, endpoint=False)
    there = np.interp(shares, np.arange(len(computed) + 1), [*computed, computed[-1] + 1])
    places = np.round(there * steps / len(mask)).astype(int)
    places = np.maximum.accumulate(places - np.arange(count)) + np.arange(count)  # each at a step of its own
    places = np.minimum(places, np.arange(steps - count, steps))
    found = np.zeros(steps, dtype=bool)
    found[places] = True
    return [bool(computes) for computes in found]
