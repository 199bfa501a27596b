"""The numbers a schedule states for each step: how a skipped residual is forecast, and what is expected of the forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.policy._decision import Decision

Coefficients = tuple[float, ...]
"""How a skipped step's residual is forecast from those computed last, r_j, r_p and r_q, newest first: ``(c1, c2)`` gives
``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)``, ``(c1,)`` leaves r_q out, ``()`` holds r_j."""

ORDER = 2
"""Most coefficients a step has."""

Check = tuple[Coefficients, float]
"""A forecast and the relative error it is expected to have."""


def numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    """``values`` as one number a step; zeros for ``None``.

    Raises:
        ArgumentError: something else than ``count`` finite numbers.
    """
    if values is None:
        return (0.0,) * count
    row = tuple(
        _checks.number(f"{name}[{i}]", v, -np.inf, example="0.0") for i, v in enumerate(_checks.listed(name, values, "numbers"))
    )
    if len(row) != count:
        raise ArgumentError(f"{name} has {len(row)} values for {count} steps; give one a step")
    return row


def levels(sigmas: Any, count: int) -> tuple[float, ...]:
    """``sigmas`` as one noise level a step; a 0 after the last step (the end of a scheduler's list) is dropped.

    Raises:
        ArgumentError: another number of levels, or levels below 0.
    """
    given = _checks.listed("sigmas", sigmas, "noise levels")
    if len(given) == count + 1 and given[-1] == 0:
        given = given[:-1]
    if len(given) != count:
        raise ArgumentError(f"sigmas has {len(given)} values for {count} steps; give one a step")
    return tuple(_checks.number(f"sigmas[{i}]", level, 0, example="1.0") for i, level in enumerate(given))


def forecasts(values: Any, stream: str, decisions: Sequence[Decision]) -> tuple[Coefficients, ...]:
    """The coefficients of each step of one stream; those of ``None`` hold.

    Raises:
        ArgumentError: another number of steps, no numbers, or coefficients where a step does not skip.
    """
    if values is None:
        return ((),) * len(decisions)
    name = f"coefficients[{stream!r}]"
    given = _checks.listed(name, values, "numbers")
    # Most steps hold, and are not worth a look at what a forecast could be.
    row = tuple(forecast(f"{name}[{i}]", value) if type(value) is not tuple or value else () for i, value in enumerate(given))
    if len(row) != len(decisions):
        raise ArgumentError(f"{name} has {len(row)} values for {len(decisions)} steps; give one a step")
    for i, (coefficients, decision) in enumerate(zip(row, decisions, strict=True)):
        if coefficients and not decision.skip:
            raise ArgumentError(f"{name}[{i}]={_checks._short(given[i])} must be 0: that step computes")
    return row


def checks(values: Any, count: int) -> tuple[Check | None, ...]:
    """The check of each step of one stream; ``None`` has none.

    Raises:
        ArgumentError: another number of steps, or no numbers.
    """
    if values is None:
        return (None,) * count
    row = tuple(None if pair is None else (forecast("checks", pair[0]), float(pair[1])) for pair in values)
    if len(row) != count:
        raise ArgumentError(f"checks has {len(row)} values for {count} steps; give one a step")
    return row


def forecast(name: str, value: Any) -> Coefficients:
    """A number, or a few, as coefficients: without zeros at the end.

    Raises:
        ArgumentError: no numbers, or too many.
    """
    given = list(value) if isinstance(value, Sequence | np.ndarray) and np.ndim(value) else [value]
    coefficients = [_checks.number(name, c, -np.inf, example="0.5") for c in given]
    if len(coefficients) > ORDER:
        raise ArgumentError(f"{name}={_checks._short(given)} has {len(coefficients)} coefficients; give at most {ORDER}")
    return trimmed(coefficients)


def trimmed(coefficients: Sequence[float]) -> Coefficients:
    """``coefficients`` without zeros at the end, which change nothing."""
    kept = [float(c) for c in coefficients]
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)
