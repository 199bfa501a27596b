"""The step table of a run: per stream, what the skip test meets at each step.

Everything that depends on position (table lookup, retention, window, forced steps, experts) is settled here, before the
run; what is left for run time is the skip test itself, in ``_policy``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from magpolicy import _checks
from magpolicy.policy._curve import Curve, nearest_indices
from magpolicy.policy._decision import Decision
from magpolicy.policy._semantics import Semantics

Gate = Decision | None

# Steps always computed in a stage of n steps at retention R.
_RETAINED: dict[str, Callable[[int, float], int]] = {
    "nearest": lambda n, r: int(r * n + 0.5),
    "floor": lambda n, r: int(r * n),
    "ceil": lambda n, r: math.ceil(r * n),
    "at_least_one": lambda n, r: max(int(r * n), 1),
    "one_more": lambda n, r: int(n * r) + 1,
    "of_levels": lambda n, r: int(r * (n + 1)),
    "none": lambda n, r: 0,
}


@frozen
class StepTable:
    """One stream's run: the ratio of each step, and the decision where the rule has no say (``None``: it has)."""

    ratios: tuple[Any, ...]
    gates: tuple[Gate, ...]


@frozen(kw_only=True)
class Limits:
    """Where in the run skipping is allowed, checked against its number of steps."""

    retention: float
    start_step: int = 0
    end_step: int | None = None
    forced: Iterable[int] | None = None
    expert_step: int | None = None


def build_step_tables(
    curve: Curve, steps: int, sigmas: Sequence[float] | None, limits: Limits, semantics: Semantics
) -> dict[str, StepTable]:
    """The step table of every stream of ``curve`` for a run of ``steps`` steps at noise levels ``sigmas`` (if known).

    Raises:
        ArgumentError: limits that do not fit the run.
    """
    tables = _transformed(curve, semantics)
    index, ratios, covered = _read(tables, steps, sigmas, semantics)
    shared = _shared_gates(steps, limits, semantics, index)
    number = np.float32 if semantics.precision == "float32" else float
    found = {}
    for lane, (stream, values) in enumerate(ratios.items()):
        gates = list(shared)
        for i in range(steps):
            if semantics.ratio_bound is not None and abs(1 - values[i]) > semantics.ratio_bound and gates[i] is None:
                gates[i] = Decision.RATIO_BOUND
            if not covered[i]:
                gates[i] = Decision.UNCALIBRATED
        _retain(gates, steps, limits, semantics, lane)
        found[stream] = StepTable(tuple(number(v) for v in values), tuple(gates))
    return found


def _transformed(curve: Curve, semantics: Semantics) -> Curve:
    if semantics.transform == "sqrt":
        ratios = {name: [v**0.5 for v in values] for name, values in curve.ratios.items()}
    elif semantics.transform == "mean":
        mean = np.mean(list(curve.ratios.values()), axis=0).tolist()
        ratios = dict.fromkeys(curve.ratios, mean)
    else:
        return curve
    return Curve(ratios, sigmas=curve.sigmas, first_step=curve.first_step)


def _read(
    curve: Curve, steps: int, sigmas: Sequence[float] | None, semantics: Semantics
) -> tuple[list[int] | None, dict[str, tuple[float, ...]], Sequence[bool]]:
    """Table entry, ratios per stream, and whether the table reaches there, for each step."""
    if semantics.interpolation == "noise_level":
        target = curve.levels_for(steps) if sigmas is None else tuple(sigmas)
        ratios = curve.resample(sigmas=target) if sigmas is not None else curve.resample(steps=steps)
        return None, dict(ratios.ratios), curve.covers(target)
    length = len(curve)
    if semantics.interpolation == "linear":
        where = np.arange(steps) * ((length - 1) / max(steps - 1, 1))
        read = {name: np.interp(where, np.arange(length), values) for name, values in curve.ratios.items()}
        return None, {name: tuple(values.tolist()) for name, values in read.items()}, [True] * steps
    index = _indices(length, curve.first_step, steps, semantics)
    inside = [0 <= i < length for i in index]
    found = {
        name: tuple(values[i] if ok else 1.0 for i, ok in zip(index, inside, strict=True))
        for name, values in curve.ratios.items()
    }
    return index, found, inside


def _indices(length: int, first_step: int, steps: int, semantics: Semantics) -> list[int]:
    if semantics.interpolation == "none":
        return [i - first_step for i in range(steps)]
    single = -1 if semantics.single_step == "last" else 0
    if steps == 1 or semantics.interpolation == "round":
        return nearest_indices(length, steps, single=single)
    scale = (length - 1) / (steps - 1)
    if semantics.interpolation == "linspace":
        where = np.round(np.linspace(0, length - 1, steps))
    elif semantics.interpolation == "round32":
        where = np.rint(np.arange(steps, dtype=np.float32) * np.float32(scale))
    else:
        where = np.floor(np.arange(steps) * scale)
    return where.astype(int).tolist()  # type: ignore[no-any-return]


def _shared_gates(steps: int, limits: Limits, semantics: Semantics, index: list[int] | None) -> list[Gate]:
    first, last = _checks.window(limits.start_step, limits.end_step, steps)
    forced = set(_checks.positions("forced", limits.forced, steps))
    if semantics.last_step == "compute":
        forced.add(steps - 1)
    if semantics.forbidden_of is not None:
        index = nearest_indices(semantics.forbidden_of, steps)
    gates: list[Gate] = [None] * steps
    for i in range(steps):
        if i in forced:
            gates[i] = Decision.FORCED
        elif not first <= i <= last:
            gates[i] = Decision.WINDOW
        elif index is not None and index[i] == semantics.forbidden_index:
            gates[i] = Decision.FORBIDDEN
    return gates


def _retain(gates: list[Gate], steps: int, limits: Limits, semantics: Semantics, lane: int) -> None:
    """Close the leading steps of each stage. ``lane`` is the stream's place among the calls of a step."""
    share = limits.retention if semantics.constant_retention is None else semantics.constant_retention
    switch = _switch(steps, limits, semantics)
    if switch is None:
        closed = [*range(_leading(steps, share, semantics, lane))]
    elif semantics.experts == "second_only":
        closed = [*range(switch + _leading(steps - switch, share, semantics, lane))]
    elif semantics.boundary == "strict":
        bound = np.float32(2 * (steps - switch) * share + 2 * switch)
        low = [i for i in range(switch, steps) if np.float32(2 * i + lane % 2) <= bound]
        closed = [*range(_leading(switch, share, semantics, lane)), *low]
    else:
        low = [*range(switch, switch + _leading(steps - switch, share, semantics, lane))]
        closed = [*range(_leading(switch, share, semantics, lane)), *low]
    for i in closed:
        if i < steps and gates[i] is not Decision.FORCED:
            gates[i] = Decision.RETENTION
    if switch is not None and switch < steps and semantics.boundary == "reset":
        gates[switch] = Decision.NO_RESIDUAL


def _switch(steps: int, limits: Limits, semantics: Semantics) -> int | None:
    if limits.expert_step is None or semantics.experts == "one":
        return None
    return min(limits.expert_step, steps)


def _leading(steps: int, share: float, semantics: Semantics, lane: int) -> int:
    if semantics.retention == "per_call":
        # Calls of two streams are counted together, cond first; those before int(2*N*R) compute.
        return max(0, -(-(int(2 * steps * share) - lane % 2) // 2))
    return _RETAINED[semantics.retention](steps, share)
