"""What a plan makes least: how errors of single skips add up to one figure for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
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
    """The objective of that name, with another power if one is given.

    Raises:
        ArgumentError: an unknown name, a power out of range, or one for ``"trajectory"``, which sums squares alone.
    """
    if isinstance(name, Objective):
        chosen = name
    else:
        chosen = OBJECTIVES[_checks.one_of("objective", DEFAULT if name is None else name, tuple(OBJECTIVES))]
    if power is None:
        return chosen
    summed = evolve(chosen, power=_checks.number("power", power, 0.5, 16, example="2"))
    if chosen.gather == "trajectory" and summed != chosen:
        words = "does not go with objective='trajectory', which sums squares; try objective='latent'"
        raise ArgumentError(f"power={power} {words}")
    return summed


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


def hedged(sizes: Floats) -> Floats:
    """(N,) step sizes (N,) half way to those of an even run, as geometric means.

    For plans of models of which nothing is known: where steps are uneven, a plan that trusts the sizes wholly leaves out the
    steps at the beginning, and one that takes none of them into account those at the end. benchmarks/quality/steps.py measures
    it. With norms known, or a calibration, it does not pay.
    """
    found: Floats = np.sqrt(sizes * sizes.mean())
    return found


def gap_costs(errors: Floats, objective: Objective) -> Floats:
    """Cost of each gap ``[a, j, m]`` with the evaluations j+1 ... j+m-1 skipped, from weighted errors ``[a, j, k]``."""
    costs = np.zeros_like(errors)
    if objective.gather == "gap":
        costs[:, :, 2:] = np.cumsum(errors[:, :, 1:-1], axis=2) ** objective.power
    else:
        costs[:, :, 2:] = np.cumsum(errors[:, :, 1:-1] ** objective.power, axis=2)
    return costs


def shares_of_run(sizes: Floats) -> Floats:
    """(N,) step sizes as shares of the run."""
    shares: Floats = sizes / max(float(sizes.sum()), 1e-300)
    return shares


def distance_weights(sizes: Floats, ridge: float = 0.1) -> Floats:
    """(N, N) W of the squared distance of the latent at the end plus its mean along the run: it stays off from an error on.

    The ridge, on the diagonal, keeps a plan from counting on errors that cancel on the calibration sample alone.
    """
    ahead = 1.0 + shares_of_run(sizes)[::-1].cumsum()[::-1]
    weights: Floats = np.minimum.outer(ahead, ahead) + ridge * np.eye(len(sizes))
    return weights


def fading_weights(sigmas: Sequence[float], ridge: float = 0.03) -> Floats:
    """(N, N) W of errors that fade like the ratio of noise levels: how much of that of one step is still there at another."""
    reached = np.append(np.asarray(sigmas)[1:], sigmas[-1] / 2)  # the level that a step goes to
    weights: Floats = np.minimum.outer(reached, reached) / np.maximum.outer(reached, reached) + ridge * np.eye(len(sigmas))
    return weights
