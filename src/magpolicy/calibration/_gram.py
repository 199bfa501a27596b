"""Inner products of residuals, and what follows from them: hold errors, forecasts and their errors.

Residuals r_0 ... r_(N-1) of a run enter as their banded Gram matrix: ``gram[i, k] = <r_i, r_(i-k)>``. For the last two computed
evaluations p < j and a later one i, with u = r_i - r_j and v = r_j - r_p,

    hold        r_i ~ r_j              leaves |u|^2
    forecast    r_i ~ r_j + c v        leaves |u|^2 - 2 c <u, v> + c^2 |v|^2, least for c = <u, v> / |v|^2

so everything a plan needs is a handful of table lookups; no residual is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# A gain below this share of the squared hold error is taken for estimation noise, and the residual is held.
MARGIN = 0.01
_TINY = 1e-12  # share of |r|^2 below which a difference is rounding
LARGEST = 32.0
"""Largest coefficient of a forecast, of either sign. Straight lines over the longest gaps that plans make need less; what
needs more divides by a difference that is next to nothing, and multiplies its rounding."""
ROUNDING = 2.0**-24
"""Share of a value by which storing it in single precision may change it. Coarser types are in what a calibration measures."""


@frozen(eq=False)
class ForecastTable:
    """Forecasts of every (previous, last, skipped) evaluation within reach, of one stream.

    Indexed ``[a, j, k]``: the last computed evaluation is j, the one before it j-a (a=0: there is none), the skipped one j+k;
    ``k=0`` is of no meaning. Entries that are not known have coefficient 0 and an infinite error.
    """

    coefficient: Floats
    squared: Floats
    """Squared length of what the forecast leaves, in units of the Gram matrix."""


def within(places: Any, count: int) -> Any:
    """Which of these are places of a list that long."""
    return (places >= 0) & (places < count)


def inner(gram: Floats, first: Any, second: Any) -> Floats:
    """<r_first, r_second> for arrays of positions; nan outside the run or the band."""
    count, width = gram.shape
    first, second = np.broadcast_arrays(first, second)
    late, gap = np.maximum(first, second), np.abs(first - second)
    known = within(first, count) & within(second, count) & within(gap, width)
    found: Floats = np.where(known, gram[np.where(known, late, 0), np.where(known, gap, 0)], np.nan)
    return found


def cross_inner(cross: Floats, i: Any, j: Any) -> Floats:
    """<r^a_i, r^b_j> from an (N, 2W+1) table; nan where not known."""
    count, width = cross.shape
    i, j = np.broadcast_arrays(i, j)
    place = width // 2 + j - i
    known = within(i, count) & within(j, count) & within(place, width)
    found: Floats = np.where(known, cross[np.where(known, i, 0), np.where(known, place, 0)], np.nan)
    return found


def differences(gram: Floats, p: Any, j: Any, i: Any) -> tuple[Floats, Floats, Floats]:
    """|u|^2, <u, v> and |v|^2 for u = r_i - r_j and v = r_j - r_p; nan where not known."""
    jj, ij, jp = inner(gram, j, j), inner(gram, i, j), inner(gram, j, p)
    uu = inner(gram, i, i) - 2 * ij + jj
    vv = jj - 2 * jp + inner(gram, p, p)
    return np.maximum(uu, 0.0), ij - inner(gram, i, p) - jj + jp, np.maximum(vv, 0.0)


def best_coefficient(uu: Floats, uv: Floats, vv: Floats, scale: Floats, margin: float = MARGIN) -> Floats:
    """The least-squares c within the bound, or 0 where it is not known or does not pay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.clip(uv / vv, -LARGEST, LARGEST)
        pays = (vv > _TINY * scale) & (c * (2 * uv - c * vv) > margin * uu)
    best: Floats = np.where(pays & np.isfinite(c), c, 0.0)
    return best


def rounded(scale: Any, coefficients: Sequence[Any]) -> Any:
    """Squared length that rounding of the residuals used adds to what a forecast leaves, of residuals of squared length
    ``scale``.

    A held residual is rounded as a computed one is: that adds nothing.
    """
    share = sum(w * w for w in on_residuals(coefficients)) - 1.0
    return ROUNDING**2 * np.maximum(share, 0.0) * scale


def remaining(uu: Floats, uv: Floats, vv: Floats, c: Any) -> Floats:
    """Squared length of r_i - r_j - c (r_j - r_p), never below 0; a held residual needs no p."""
    with np.errstate(invalid="ignore"):
        left = np.where(c == 0.0, uu, uu - 2 * c * uv + c * c * vv)
    rest: Floats = np.maximum(left, 0.0)
    return rest


def on_residuals(coefficients: Sequence[Any]) -> list[Any]:
    """The weights of r_j, r_p, ... in the forecast that these coefficients make; they sum to 1."""
    found = [1.0, *(0.0 for _ in coefficients)]
    for place, c in enumerate(coefficients):
        found[place] = found[place] + c
        found[place + 1] = found[place + 1] - c
    return found


def error_of(gram: Floats, history: Sequence[int], i: int, coefficients: Sequence[float]) -> float:
    """Relative error of forecasting r_i from the residuals computed last, newest first; infinite where not known."""
    weights = np.array([1.0, *(-w for w in on_residuals(coefficients))])
    places = np.array([i, *history[: len(coefficients) + 1]])
    if len(places) < len(weights):
        return np.inf
    products = inner(gram, places[:, None], places[None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        size = inner(gram, i, i)
        error = float(np.sqrt((max(weights @ products @ weights, 0.0) + rounded(size, coefficients)) / size))
    return error if np.isfinite(error) else np.inf


def calibrated(gram: Floats, samples: Floats | None, p: Any, j: Any, i: Any) -> Floats:
    """The coefficients of the calibrated forecast: least squares, 0 where that is not known or does not pay.

    With several samples each is forecast with the coefficient of all the others, and the forecast must still beat holding: what
    only the noise of estimation gains is not taken.
    """
    uu, uv, vv = differences(gram, p, j, i)
    c = best_coefficient(uu, uv, vv, inner(gram, j, j))
    if samples is None or len(samples) < 2:
        return c
    alone = [differences(sample, p, j, i) for sample in samples]
    total = [np.sum([parts[q] for parts in alone], axis=0) for q in range(3)]
    left: Any = 0.0
    for one in alone:
        with np.errstate(divide="ignore", invalid="ignore"):
            others = (total[1] - one[1]) / (total[2] - one[2])
        left = left + remaining(*one, np.where(np.isfinite(others), others, 0.0))
    found: Floats = np.where(left < (1.0 - MARGIN) * total[0], c, 0.0)
    return found


def tabulate(
    gram: Floats,
    reach: int,
    forecast: str,
    *,
    levels: Any = None,
    damping: float = 1.0,
    samples: Floats | None = None,
) -> ForecastTable:
    """Every forecast whose gaps are at most ``reach`` evaluations long.

    Args:
        gram: (N, W+1) banded Gram matrix.
        reach: longest distance from one computed evaluation to the next.
        forecast: ``"hold"``, ``"linear"`` (c = damping (s_i - s_j) / (s_j - s_p)), or ``"calibrated"``; its table also stands
            for ``"second-order"``, whose coefficients depend on the whole schedule.
        levels: (N,) noise levels s, for ``"linear"``.
        damping: factor on the linear forecast.
        samples: (S, N, W+1) the Gram matrices ``gram`` is the mean of, for ``"calibrated"``.
    """
    count = len(gram)
    a = np.arange(reach + 1)[:, None, None]
    j = np.arange(count)[None, :, None]
    k = np.arange(reach + 1)[None, None, :]
    p, i = j - a, j + k
    uu, uv, vv = differences(gram, p, j, i)
    if forecast in ("calibrated", "second-order"):
        c = calibrated(gram, samples, p, j, i)
    elif forecast == "linear":
        c = np.where(np.isfinite(uv) & np.isfinite(vv), damping * slopes(np.asarray(levels), p, j, i), 0.0)
    else:
        c = np.zeros(uu.shape)
    c = np.where((a == 0) | (k == 0) | (p < 0), 0.0, c)
    rest = remaining(uu, uv, vv, c) + rounded(inner(gram, i, i), (c,))
    return ForecastTable(c, np.where(np.isfinite(rest), rest, np.inf))


def slopes(levels: Floats, p: Any, j: Any, i: Any) -> Floats:
    """(s_i - s_j) / (s_j - s_p), 0 where it has no meaning."""
    count = len(levels)
    known = within(p, count) & within(i, count)
    at = [levels[np.clip(x, 0, count - 1)] for x in (p, j, i)]
    step = at[1] - at[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope: Floats = np.where(known & (step != 0.0), (at[2] - at[1]) / step, 0.0)
    return slope
