"""Plans of single streams that share one budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from magpolicy.planning._error_tables import mean_length
from magpolicy.planning._objective import Objective
from magpolicy.planning._problem import PlanProblem
from magpolicy.planning._shortest_path import Path

Spent = dict[int, tuple[float, tuple[int, ...]]]
"""By evaluations spent on the streams so far: the least cost, and how many each of them got."""


def share_budget(
    problem: PlanProblem, objective: Objective, paths: Mapping[str, Mapping[int, Path]], budget: int
) -> dict[str, tuple[int, ...]] | None:
    """The computed evaluations of each stream that cost least together, ``budget`` in all; ``None``: not to be had."""
    best: Spent = {0: (0.0, ())}
    for name in problem.streams:
        scale = _length_of(problem, name) if objective.weight == "latent" else 1.0
        best = _with_stream(best, paths[name], scale**objective.power)
    if budget not in best:
        return None
    lengths = zip(problem.streams, best[budget][1], strict=True)
    return {name: paths[name][length].computed for name, length in lengths}


def _with_stream(spent: Spent, paths: Mapping[int, Path], weight: float) -> Spent:
    """One stream more, whose costs count ``weight`` times."""
    best: Spent = {}
    for before, (cost, lengths) in spent.items():
        for length, path in paths.items():
            total = cost + path.cost * weight
            if total < best.get(before + length, (np.inf,))[0]:
                best[before + length] = (total, (*lengths, length))
    return best


def _length_of(problem: PlanProblem, stream: str) -> float:
    """The stream's mean length. Costs of single streams are over their own, and so not comparable without it."""
    return float(np.sqrt(mean_length(problem.errors.of_stream(stream).combined()[1])))
