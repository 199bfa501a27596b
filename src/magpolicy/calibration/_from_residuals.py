"""Moments of residuals that are at hand as arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._moments import StreamMoments
from magpolicy.policy._curve import SINGLE


def moments_of(
    residuals: Mapping[str, Sequence[ArrayLike]] | Sequence[ArrayLike], window: int | None
) -> tuple[dict[str, StreamMoments], dict[tuple[str, str], Floats]]:
    """Moments per stream and products per pair of streams; see :meth:`magpolicy.Calibration.from_residuals`."""
    given = residuals if isinstance(residuals, Mapping) else {SINGLE: residuals}
    arrays = {str(name): _stack(f"residuals[{name!r}]", rows) for name, rows in given.items()}
    counts = {name: len(rows) for name, rows in arrays.items()}
    if len(set(counts.values())) != 1:
        raise ArgumentError(f"residuals have {counts} evaluations; give every stream one residual an evaluation")
    count = next(iter(counts.values()))
    width = min(count - 1, _checks.whole("window", count - 1 if window is None else window, 0, example="12"))
    streams = {name: _moments(rows, width) for name, rows in arrays.items()}
    return streams, {(a, b): _cross(arrays[a], arrays[b], width) for a, b in itertools.combinations(arrays, 2)}


def _stack(name: str, rows: Sequence[ArrayLike]) -> Floats:
    try:
        stacked = np.stack([np.asarray(row, dtype=np.float64) for row in rows])
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must hold one array of numbers an evaluation, all of one shape: {error}") from None
    if stacked.ndim < 2 or not np.isfinite(stacked).all():
        raise ArgumentError(f"{name} must hold finite arrays of shape (..., channels); calibrate in a wider dtype")
    return stacked.reshape(len(stacked), -1, stacked.shape[-1])


def _moments(rows: Floats, width: int) -> StreamMoments:
    count = len(rows)
    gram = np.full((count, width + 1), np.nan)
    for back in range(width + 1):
        gram[back:, back] = (rows[back:] * rows[: count - back]).mean(axis=(1, 2))
    size = np.linalg.norm(rows, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = size[1:] / size[:-1]
        cosine = (rows[1:] * rows[:-1]).sum(axis=2) / (size[1:] * size[:-1])
    # A token whose residual vanishes says nothing of the growth of the others.
    growth = np.where(size[:-1] > 0, growth, np.nan)
    return StreamMoments(
        gram=gram,
        ratios=[1.0, *np.nanmean(growth, axis=1).tolist()],
        spread=[0.0, *np.nanstd(growth, axis=1).tolist()],
        cosine=[0.0, *np.maximum(0.0, 1 - np.nanmean(cosine, axis=1)).tolist()],
    )


def _cross(first: Floats, second: Floats, width: int) -> Floats:
    count = len(first)
    table = np.full((count, 2 * width + 1), np.nan)
    for ahead in range(-width, width + 1):
        low, high = max(0, -ahead), min(count, count - ahead)
        table[low:high, width + ahead] = (first[low:high] * second[low + ahead : high + ahead]).mean(axis=(1, 2))
    return table
