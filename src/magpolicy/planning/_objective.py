"""What a plan makes least: how errors of single skips add up to one figure for a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy.calibration._gram import Floats


@frozen
class Objective:
    """One way to add up the errors of a run's skips."""

    name: str
    weight: str
    """``"relative"``: errors as a share of the residual; ``"latent"``: step size times length of the error, which is what a
    step of a first-order sampler adds to the latent."""
    gather: str
    """``"each"``: every skip's error to the power, summed; ``"gap"``: errors between two computed evaluations are added before
    (they point the same way); ``"trajectory"``: the squared distance of the latent from where it should be, along the run and
    at its end, errors added as vectors."""
    power: float


OBJECTIVES = {
    o.name: o
    for o in (
        Objective("latent", "latent", "each", 2.0),
        Objective("gap", "latent", "gap", 2.0),
        Objective("trajectory", "latent", "trajectory", 2.0),
        Objective("relative", "relative", "each", 2.0),
        Objective("peak", "relative", "each", 4.0),
    )
}
DEFAULT = "latent"
LONGEST = 200  # steps that "trajectory" plans; its form takes steps^3 operations, and more steps gain nothing from it


def objective(name: Any, power: Any = None) -> Objective:
    """The objective of that name, with another power if one is given."""
    if isinstance(name, Objective):
        found = name
    else:
        found = OBJECTIVES[_checks.one_of("objective", DEFAULT if name is None else name, tuple(OBJECTIVES))]
    return found if power is None else evolve(found, power=_checks.number("power", power, 0.5, 16, example="2"))


def step_sizes(levels: tuple[float, ...]) -> Floats:
    """Share of the run that each evaluation speaks for.

    The way down to the next level where levels fall (Euler); where they repeat or rise (second-order samplers), half of the
    way from the one before and half of the way to the next.
    """
    to_next = np.abs(np.diff(levels, append=0.0))
    if np.all(np.diff(levels) < 0):
        return to_next
    from_last = np.abs(np.diff(levels, prepend=levels[0]))
    return np.asarray((to_next + from_last) / 2)


def gap_costs(errors: Floats, how: Objective) -> Floats:
    """Cost of each gap ``[a, j, m]`` with the evaluations j+1 ... j+m-1 skipped, from weighted errors ``[a, j, k]``."""
    costs = np.zeros_like(errors)
    if how.gather == "gap":
        costs[:, :, 2:] = np.cumsum(errors[:, :, 1:-1], axis=2) ** how.power
    else:
        costs[:, :, 2:] = np.cumsum(errors[:, :, 1:-1] ** how.power, axis=2)
    return costs
