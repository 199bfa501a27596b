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
from magpolicy.schedule._coefficients import ORDER, Coefficients, trimmed

ORDERS = {"calibrated": 1, "second-order": 2}
"""Coefficients a step that are fitted; other forecasts bring theirs."""

Ints = NDArray[np.int64]


@frozen(eq=False)
class _Skips:
    """The skipped evaluations of a schedule."""

    at: Ints
    """(n,) where."""
    computed: Ints
    """(n, ORDER+1) the evaluations computed before each, newest first; -1 where there is none."""


@frozen(eq=False)
class _Terms:
    """Coefficients to find: each multiplies the difference of two residuals, in one stream, at one skip."""

    skip: Ints
    stream: Ints
    place: Ints
    """Which of the step's coefficients it is."""
    newer: Ints
    older: Ints
    """The two residuals, among those of all streams one after another."""


class Trajectory:
    """Scores schedules of one run by the latent's distance from its way, and fits their forecasts."""

    def __init__(self, ledger: ErrorTables, sizes: Floats, closed: NDArray[np.bool_], shares: Floats) -> None:
        """``shares`` is W: :func:`distance` or :func:`fading`."""
        self._ledger, self._closed = ledger, closed
        self._order = ORDERS.get(ledger.forecast, 0)
        self._names = list(ledger.tables)
        self._form = ledger.form()
        unknown = np.isnan(self._form)
        self._unknown = unknown.astype(np.float32) if unknown.any() else None
        self._form = np.nan_to_num(self._form)
        share = share_of_run(sizes)
        self._weights = np.outer(share, share) * shares

    def cost(self, computed: Sequence[int]) -> float:
        """The cost of computing these evaluations only, forecasts being the best; infinite where one is not known."""
        skips = self._skips(computed)
        return np.inf if skips is None else self._fit(skips)[1]

    def fit(self, computed: Sequence[int]) -> dict[str, dict[int, Coefficients]]:
        """Per stream the coefficients of each skip with which computing these evaluations costs least."""
        skips = self._skips(computed)
        if skips is None:
            raise ValueError(f"{computed}: not all that is skipped there may be")
        found: dict[str, dict[int, Coefficients]] = {}
        for name, rows in zip(self._names, self._fit(skips)[0], strict=True):
            found[name] = {int(i): trimmed(row) for i, row in zip(skips.at, rows, strict=True)}
        return found

    def _skips(self, computed: Sequence[int]) -> _Skips | None:
        """The skips between; ``None`` where one is not allowed."""
        reach, count = self._ledger.reach, self._ledger.count
        following = np.array([*computed[1:], count])
        taken = np.array(computed)
        if (following - taken).max() > reach:
            return None
        number = following - taken - 1
        gap = np.repeat(np.arange(len(taken)), number)
        at = np.flatnonzero(~np.isin(np.arange(count), taken) & (np.arange(count) > taken[0]))
        padded = np.concatenate([np.full(ORDER, -1), taken])
        before = padded[gap[:, None] + np.arange(ORDER, -1, -1)]
        a = np.where(before[:, 1] >= 0, before[:, 0] - before[:, 1], 0)
        if (a > reach).any() or self._closed[a, before[:, 0], at - before[:, 0]].any():
            return None
        return _Skips(at, before)

    def _fit(self, skips: _Skips) -> tuple[Floats, float]:
        """Coefficients (streams, n, ORDER), and the cost."""
        found = self._given(skips)
        base, fitted = self._errors(skips, found), self._fitted(skips)
        weights = self._weighted(skips, fitted | (found != 0).any(axis=0))
        terms = self._terms(skips, fitted)
        if not len(terms.skip):
            return found, self._cost(base, weights)
        weights, curvature = self._bounded(terms, weights)
        right = self._pull(terms, base, weights)
        c = np.linalg.solve(curvature, right)
        found[terms.stream, terms.skip, terms.place] = c
        return found, max(self._cost(base, weights) - float(right @ c), 0.0)

    def _bounded(self, terms: _Terms, weights: Floats) -> tuple[Floats, Floats]:
        """The weights and the curvature with them, such that there is a least: where products are left out of a form, it may
        fall without end. What steps have in common then counts for less, at last for nothing."""
        alone = np.diag(np.diagonal(weights))
        for common in (1.0, 0.5, 0.2):
            mixed = common * weights + (1 - common) * alone
            curvature = self._curvature(terms, mixed)
            if self._unknown is None or np.linalg.eigvalsh(curvature)[0] > 0:
                return mixed, curvature
        return alone, self._curvature(terms, alone)

    def _given(self, skips: _Skips) -> Floats:
        """The coefficients of a forecast that is not fitted; 0 of one that is."""
        found = np.zeros((len(self._names), len(skips.at), ORDER))
        if not self._order:
            j, p = skips.computed[:, 0], skips.computed[:, 1]
            for s, name in enumerate(self._names):
                found[s, :, 0] = self._ledger.tables[name].coefficient[np.where(p >= 0, j - p, 0), j, skips.at - j]
        return found

    def _terms(self, skips: _Skips, fitted: NDArray[np.bool_]) -> _Terms:
        stream, skip, place = np.nonzero(np.broadcast_to(fitted, (len(self._names), *fitted.shape)))
        offset = stream * self._ledger.count
        return _Terms(skip, stream, place, offset + skips.computed[skip, place], offset + skips.computed[skip, place + 1])

    def _fitted(self, skips: _Skips) -> NDArray[np.bool_]:
        """(n, ORDER) the coefficients that are fitted: those for which there are residuals, all products being known."""
        known = (skips.computed[:, 1:] >= 0) & (np.arange(ORDER) < self._order)
        if self._unknown is None:
            return known
        places = np.column_stack([skips.at, skips.computed])
        for order in range(self._order):
            for a, b in itertools.combinations(range(order + 3), 2):
                for s in range(len(self._names)):
                    offset = s * self._ledger.count
                    known[:, order] &= self._unknown[offset + places[:, a], offset + places[:, b]] == 0
        return np.logical_and.accumulate(known, axis=1)

    def _errors(self, skips: _Skips, coefficients: Floats) -> Floats:
        """(n, streams x steps) what each skip's error is made of, in residuals."""
        n, count = len(skips.at), self._ledger.count
        rows = np.zeros((n, len(self._names), count))
        row = np.arange(n)
        rows[row, :, skips.at] = 1.0
        for s in range(len(self._names)):
            for place, weight in enumerate(_gram.on_residuals(coefficients[s].T)):
                known = skips.computed[:, place] >= 0
                rows[row[known], s, skips.computed[known, place]] -= weight[known]
        return rows.reshape(n, len(self._names) * count)

    def _weighted(self, skips: _Skips, forecast: NDArray[np.bool_]) -> Floats:
        """(n, n) what the products of errors are multiplied by, with (n, ORDER) the coefficients there are."""
        weights: Floats = self._weights[np.ix_(skips.at, skips.at)]
        if self._unknown is None:
            return weights
        count = self._ledger.count
        used = np.zeros((len(skips.at), count), np.float32)
        row = np.arange(len(skips.at))
        used[row, skips.at] = 1.0
        for place, taken in enumerate((np.ones(len(row), dtype=bool), *forecast.T)):
            for at in (place - 1, place) if place else (0,):
                used[row[taken], skips.computed[taken, at]] = 1.0
        everywhere = np.tile(used, len(self._names))
        apart = everywhere @ self._unknown @ everywhere.T > 0.5
        np.fill_diagonal(apart, False)
        return np.where(apart, 0.0, weights)

    def _cost(self, errors: Floats, weights: Floats) -> float:
        return max(float((weights * (errors @ self._form @ errors.T)).sum()), 0.0)

    def _curvature(self, terms: _Terms, weights: Floats) -> Floats:
        moved = self._form[terms.newer] - self._form[terms.older]
        curvature: Floats = weights[np.ix_(terms.skip, terms.skip)] * (moved[:, terms.newer] - moved[:, terms.older])
        # Differences that vanish, or are alike, leave a coefficient open; it is then small.
        diagonal = np.diag_indices_from(curvature)
        curvature[diagonal] += 1e-6 * curvature[diagonal] + 1e-12 * max(float(curvature[diagonal].max()), 1e-300)
        return curvature

    def _pull(self, terms: _Terms, errors: Floats, weights: Floats) -> Floats:
        """Half of what the cost falls by for each coefficient at 0."""
        products = (self._form[terms.newer] - self._form[terms.older]) @ errors.T
        pull: Floats = (weights[terms.skip] * products).sum(axis=1)
        return pull


def share_of_run(sizes: Floats) -> Floats:
    """Step sizes as shares of the run."""
    share: Floats = sizes / max(float(sizes.sum()), 1e-300)
    return share


def distance(sizes: Floats, ridge: float = 0.1) -> Floats:
    """(N, N) W of the squared distance of the latent at the end plus its mean along the run: it stays off from an error on.

    The ridge, on the diagonal, keeps a plan from counting on errors that cancel on the calibration sample alone.
    """
    share = share_of_run(sizes)
    ahead = 1.0 + share[::-1].cumsum()[::-1]
    found: Floats = np.minimum.outer(ahead, ahead) + ridge * np.eye(len(sizes))
    return found


def fading(sigmas: Sequence[float], ridge: float = 0.03) -> Floats:
    """(N, N) W of errors that fade like the ratio of noise levels: how much of that of one step is still there at another."""
    reached = np.append(np.asarray(sigmas)[1:], sigmas[-1] / 2)  # the level that a step goes to
    found: Floats = np.minimum.outer(reached, reached) / np.maximum.outer(reached, reached) + ridge * np.eye(len(sigmas))
    return found
