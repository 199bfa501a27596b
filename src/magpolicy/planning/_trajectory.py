"""How far a schedule takes the latent off its way, to first order, and the forecasts that leave the least of it.

The error eps_i of a skipped step, that of the guided combination, enters the latent as h_i eps_i (h: step size). Errors of
different steps are vectors that add up or cancel, so the distance is no sum over steps but a quadratic form of the inner
products that are known anyway:

    sum_ik h_i h_k W_ik <eps_i, eps_k>

A skipped residual is forecast as r_j + c1 (r_j - r_p) + c2 (r_p - r_q). The form is quadratic in the coefficients of all skips,
so those that make it least are found together, by one linear solve. There are two W, each the best on models really run
(docs/explanation/quality.md): one to compare schedules by, one to fit the coefficients of the schedule chosen.

Errors whose inner product is not known whole, because they lie further apart than the window is wide, are taken to be at
right angles: parts of one would not cancel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from magpolicy.calibration import _gram
from magpolicy.calibration._gram import Floats
from magpolicy.planning._error_tables import ErrorTables
from magpolicy.planning._objective import shares_of_run
from magpolicy.schedule._coefficients import ORDER, Coefficients, trimmed

FITTED_ORDERS = {"calibrated": 1, "second-order": 2}
"""Coefficients a step that are fitted; other forecasts bring theirs."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RIDGES = (1e-6, 1e-4, 1e-2)
"""Shares of the curvature that are added to it, in turn, where a coefficient is too large."""


@frozen(eq=False)
class _Skips:
    """The n skipped evaluations of a schedule."""

    at: Ints
    """(n,) where."""
    computed: Ints
    """(n, ORDER+1) the evaluations computed before each, newest first; -1 where there is none."""


@frozen(eq=False)
class _Unknowns:
    """The m coefficients to find: each multiplies the difference of two residuals, in one stream, at one skip."""

    skip: Ints
    stream: Ints
    order: Ints
    """0 of a skip's c1, 1 of its c2."""
    newer: Ints
    older: Ints
    """The two residuals, numbered through all streams one after another."""


def _bounded_solution(curvature: Floats, slope: Floats) -> Floats:
    """(m,) the coefficients that make the cost least, none above the bound.

    Where one is, differences that are next to nothing are held for more than they are, until none is; at last it is cut.
    """
    best = np.asarray(np.linalg.solve(curvature, slope), dtype=np.float64)
    for ridge in RIDGES:
        if np.abs(best).max() <= _gram.LARGEST:
            return best
        diagonal = np.diag(curvature)
        best = np.asarray(np.linalg.solve(curvature + ridge * np.diag(diagonal + diagonal.mean()), slope), dtype=np.float64)
    bounded: Floats = np.clip(best, -_gram.LARGEST, _gram.LARGEST)
    return bounded


class Trajectory:
    """Scores schedules of one run by the latent's distance from its way, and fits their forecasts.

    Args:
        tables: the inner products of the run's residuals, and its errors.
        sizes: (N,) step sizes h.
        forbidden: ``[a, j, k]`` True where a skip is not allowed.
        weights: (N, N) W, of :func:`distance_weights` or :func:`fading_weights`.
    """

    def __init__(self, tables: ErrorTables, sizes: Floats, forbidden: Bools, weights: Floats) -> None:
        self._tables, self._forbidden = tables, forbidden
        self._order = FITTED_ORDERS.get(tables.forecast, 0)
        self._streams = list(tables.forecasts)
        form = tables.quadratic_form()
        unknown = np.isnan(form)
        self._unknown = unknown.astype(np.float32) if unknown.any() else None
        self._form = np.nan_to_num(form)
        share = shares_of_run(sizes)
        self._weights = np.outer(share, share) * weights

    def cost(self, computed: Sequence[int]) -> float:
        """The cost of computing these evaluations only, forecasts being the best; infinite where a skip is not allowed."""
        skips = self._skips(computed)
        return np.inf if skips is None else self._fit(skips)[1]

    def fit(self, computed: Sequence[int]) -> dict[str, dict[int, Coefficients]]:
        """Per stream the coefficients of each skip with which computing these evaluations costs least.

        Raises:
            ValueError: a skip is not allowed.
        """
        skips = self._skips(computed)
        if skips is None:
            raise ValueError(f"{computed}: not all that is skipped there may be")
        coefficients = zip(self._streams, self._fit(skips)[0], strict=True)
        return {
            name: {int(i): trimmed(row.tolist()) for i, row in zip(skips.at, rows, strict=True)} for name, rows in coefficients
        }

    def _skips(self, computed: Sequence[int]) -> _Skips | None:
        """The evaluations between the computed ones; ``None`` where one may not be skipped."""
        longest, count = self._tables.longest_gap, self._tables.count
        following = np.array([*computed[1:], count])
        taken = np.array(computed)
        if (following - taken).max() > longest:
            return None
        gap = np.repeat(np.arange(len(taken)), following - taken - 1)
        at = np.flatnonzero(~np.isin(np.arange(count), taken) & (np.arange(count) > taken[0]))
        padded = np.concatenate([np.full(ORDER, -1), taken])
        before = padded[gap[:, None] + np.arange(ORDER, -1, -1)]
        a = np.where(before[:, 1] >= 0, before[:, 0] - before[:, 1], 0)
        if (a > longest).any() or self._forbidden[a, before[:, 0], at - before[:, 0]].any():
            return None
        return _Skips(at, before)

    def _fit(self, skips: _Skips) -> tuple[Floats, float]:
        """The best coefficients (streams, n, ORDER), and the cost with them."""
        coefficients = self._given(skips)
        errors, fitted = self._errors(skips, coefficients), self._fitted(skips)
        weights = self._weights_of(skips, fitted | (coefficients != 0).any(axis=0))
        unknowns = self._unknowns(skips, fitted)
        if not len(unknowns.skip):
            return coefficients, self._cost(errors, weights)
        weights, curvature = self._convex(unknowns, weights)
        slope = self._slope(unknowns, errors, weights)
        best = _bounded_solution(curvature, slope)
        coefficients[unknowns.stream, unknowns.skip, unknowns.order] = best
        saved = float(best @ (2 * slope - curvature @ best))
        return coefficients, max(self._cost(errors, weights) - saved, 0.0)

    def _convex(self, unknowns: _Unknowns, weights: Floats) -> tuple[Floats, Floats]:
        """Weights with which the cost has a least value, and its curvature with them.

        The cost is a squared length and never negative, unless products that are not known were left out of it. Without them it
        may fall without end. The products of different steps then count for half, a fifth, and at last not at all.
        """
        single = np.diag(np.diagonal(weights))
        for common in (1.0, 0.5, 0.2):
            mixed = common * weights + (1 - common) * single
            curvature = self._curvature(unknowns, mixed)
            if self._unknown is None or np.linalg.eigvalsh(curvature)[0] > 0:
                return mixed, curvature
        return single, self._curvature(unknowns, single)

    def _given(self, skips: _Skips) -> Floats:
        """(streams, n, ORDER) the coefficients of a forecast that is not fitted; 0 of one that is."""
        coefficients = np.zeros((len(self._streams), len(skips.at), ORDER))
        if not self._order:
            j, p = skips.computed[:, 0], skips.computed[:, 1]
            for s, name in enumerate(self._streams):
                coefficients[s, :, 0] = self._tables.forecasts[name].coefficient[np.where(p >= 0, j - p, 0), j, skips.at - j]
        return coefficients

    def _fitted(self, skips: _Skips) -> Bools:
        """(n, ORDER) the coefficients that are fitted: those for which there are residuals, all products being known."""
        fitted: Bools = (skips.computed[:, 1:] >= 0) & (np.arange(ORDER) < self._order)
        if self._unknown is None:
            return fitted
        residuals = np.column_stack([skips.at, skips.computed])
        for order in range(self._order):
            for a, b in itertools.combinations(range(order + 3), 2):
                for s in range(len(self._streams)):
                    offset = s * self._tables.count
                    fitted[:, order] &= self._unknown[offset + residuals[:, a], offset + residuals[:, b]] == 0
        return np.logical_and.accumulate(fitted, axis=1)

    def _unknowns(self, skips: _Skips, fitted: Bools) -> _Unknowns:
        stream, skip, order = np.nonzero(np.broadcast_to(fitted, (len(self._streams), *fitted.shape)))
        offset = stream * self._tables.count
        newer, older = skips.computed[skip, order], skips.computed[skip, order + 1]
        return _Unknowns(skip, stream, order, offset + newer, offset + older)

    def _errors(self, skips: _Skips, coefficients: Floats) -> Floats:
        """(n, streams*N) each skip's error as a sum of residuals."""
        n, count = len(skips.at), self._tables.count
        rows = np.zeros((n, len(self._streams), count))
        row = np.arange(n)
        rows[row, :, skips.at] = 1.0
        for s in range(len(self._streams)):
            for back, weight in enumerate(_gram.on_residuals(coefficients[s].T)):
                known = skips.computed[:, back] >= 0
                rows[row[known], s, skips.computed[known, back]] -= weight[known]
        return rows.reshape(n, len(self._streams) * count)

    def _weights_of(self, skips: _Skips, used: Bools) -> Floats:
        """(n, n) what the products of errors are multiplied by: 0 where one is not known.

        ``used`` is (n, ORDER), True for the coefficients that a forecast has.
        """
        weights: Floats = self._weights[np.ix_(skips.at, skips.at)]
        if self._unknown is None:
            return weights
        residuals = np.zeros((len(skips.at), self._tables.count), np.float32)  # 1 for those that an error is made of
        row = np.arange(len(skips.at))
        residuals[row, skips.at] = residuals[row, skips.computed[:, 0]] = 1.0
        for order in range(ORDER):
            for back in (order, order + 1):
                residuals[row[used[:, order]], skips.computed[used[:, order], back]] = 1.0
        everywhere = np.tile(residuals, len(self._streams))
        apart = everywhere @ self._unknown @ everywhere.T > 0.5
        np.fill_diagonal(apart, False)
        return np.where(apart, 0.0, weights)

    def _cost(self, errors: Floats, weights: Floats) -> float:
        return max(float((weights * (errors @ self._form @ errors.T)).sum()), 0.0)

    def _curvature(self, unknowns: _Unknowns, weights: Floats) -> Floats:
        """(m, m) half of the cost's second derivatives."""
        moved = self._form[unknowns.newer] - self._form[unknowns.older]
        products = moved[:, unknowns.newer] - moved[:, unknowns.older]
        curvature: Floats = weights[np.ix_(unknowns.skip, unknowns.skip)] * products
        # Differences that vanish, or are alike, leave a coefficient open; it is then small.
        diagonal = np.diag_indices_from(curvature)
        curvature[diagonal] += 1e-6 * curvature[diagonal] + 1e-12 * max(float(curvature[diagonal].max()), 1e-300)
        return curvature

    def _slope(self, unknowns: _Unknowns, errors: Floats, weights: Floats) -> Floats:
        """(m,) half of what the cost falls by for each coefficient, where all are 0."""
        products = (self._form[unknowns.newer] - self._form[unknowns.older]) @ errors.T
        slope: Floats = (weights[unknowns.skip] * products).sum(axis=1)
        return slope
