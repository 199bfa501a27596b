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

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from magpolicy.calibration import _gram
from magpolicy.calibration._gram import Floats
from magpolicy.planning._error_tables import ErrorTables
from magpolicy.planning._objective import shares_of_run
from magpolicy.schedule._coefficients import ORDER, Coefficients, trimmed

FITTED_ORDERS = {"calibrated": 1, "second-order": 2}
"""Coefficients a step that are fitted; other forecasts bring theirs."""

Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

RIDGES = (1e-6, 1e-4, 1e-2)
"""Shares of the curvature that are added to it, in turn, where a coefficient is too large."""


class Trajectory:
    """Scores schedules of one run by the latent's distance from its way, and fits their forecasts.

    Args:
        tables: the inner products of the run's residuals, and its errors.
        sizes: (N,) step sizes h.
        forbidden: ``[a, j, k]`` True where a skip is not allowed.
        weights: (N, N) W, of :func:`distance_weights` or :func:`fading_weights`.
    """

    def __init__(self, tables: ErrorTables, sizes: Floats, forbidden: Bools, weights: Floats) -> None:
        self._tables = tables
        self._count, self._longest_gap = tables.count, tables.longest_gap
        self._order = FITTED_ORDERS.get(tables.forecast)
        form = tables.quadratic_form().reshape(len(tables.forecasts), tables.count, -1, tables.count)
        unknown = np.isnan(form).any(axis=(0, 2))
        self._unknown = np.asarray(unknown, dtype=np.float32) if unknown.any() else None
        self._forms = _blocks(np.nan_to_num(form), mixed=tables.factors is not None)
        share = shares_of_run(sizes)
        self._weights = np.outer(share, share) * weights
        self._forbidden = np.zeros_like(forbidden)  # [a, j, m]: to skip all from j to j+m
        np.logical_or.accumulate(forbidden[:, :, 1:-1], axis=2, out=self._forbidden[:, :, 2:])

    def cost(self, computed: Sequence[int]) -> float:
        """The cost of computing these evaluations only, forecasts being the best; infinite where a skip is not allowed."""
        chains = self._chains(computed)
        return np.inf if chains is None else self._fit(chains)[1]

    def fit(self, computed: Sequence[int]) -> dict[str, dict[int, Coefficients]]:
        """Per stream the coefficients of each skip with which computing these evaluations costs least.

        Raises:
            ValueError: a skip is not allowed.
        """
        chains = self._chains(computed)
        if chains is None:
            raise ValueError(f"{computed}: not all that is skipped there may be")
        coefficients = zip(self._tables.forecasts, self._fit(chains)[0], strict=True)
        return {
            name: {i: trimmed(row) for i, row in zip(chains[0].tolist(), rows.T.tolist(), strict=True)}
            for name, rows in coefficients
        }

    def _chains(self, computed: Sequence[int]) -> Ints | None:
        """(ORDER+2, n) each skipped evaluation, and below it those computed before, newest first; the first of the run stands
        for those that there are not. ``None`` where one may not be skipped.
        """
        chains = []
        q = p = j = computed[0]
        for following in (*computed[1:], self._count):
            if following - j > self._longest_gap or self._forbidden[j - p, j, following - j]:
                return None
            chains += [(i, j, p, q) for i in range(j + 1, following)]
            q, p, j = p, j, following
        return np.array(chains, dtype=np.intp).reshape(-1, ORDER + 2).T

    def _fit(self, chains: Ints) -> tuple[Floats, float]:
        """The best coefficients (streams, order, n), and the cost with them."""
        given = self._given(chains)
        chains = self._used(chains, given)
        products = self._products(chains)
        weights = self._weights_of(chains)
        curvature, slope, held = _terms(products, weights)
        if given is None:
            for common in (0.5, 0.2, 0.0) if self._unknown is not None else ():
                # The cost is a squared length and never negative, unless products that are not known were left out of it.
                # Without them it may fall without end; then products of different steps count for less, at last not at all.
                if np.linalg.eigvalsh(_steadied(curvature)).min(initial=1.0) > 0:
                    break
                curvature, slope, held = _terms(products, np.where(np.eye(len(weights), dtype=bool), weights, common * weights))
            curvature = _steadied(curvature)
            best = _bounded_solution(curvature, slope)
        else:
            best = given.reshape(slope.shape)
        saved = float((best * (2 * slope - (curvature @ best[..., None])[..., 0])).sum())
        return best.reshape(len(self._tables.forecasts), len(chains) - 2, chains.shape[1]), max(held - saved, 0.0)

    def _given(self, chains: Ints) -> Floats | None:
        """(streams, 1, n) the coefficients of a forecast that is not fitted; ``None`` of one that is."""
        if self._order is not None:
            return None
        i, j, p = chains[:3]
        return np.array([[table.coefficient[j - p, j, i - j]] for table in self._tables.forecasts.values()])

    def _used(self, chains: Ints, given: Floats | None) -> Ints:
        """(order+2, n) the chains as far as there are coefficients and inner products; what is left out repeats what is before.

        A coefficient then multiplies no difference.
        """
        chains = chains[: 3 if self._order is None else self._order + 2]
        if given is not None:
            return np.stack([*chains[:2], np.where(given.any(axis=(0, 1)), chains[2], chains[1])])
        if self._unknown is None:
            return chains
        used, known = [*chains[:2]], self._unknown[chains[0], chains[1]] == 0
        for row in chains[2:]:
            known = np.logical_and.reduce([known, *(self._unknown[row, other] == 0 for other in used)])
            used.append(np.where(known, row, used[-1]))
        return np.stack(used)

    def _products(self, chains: Ints) -> Floats:
        """(B, M, order+1, n, M, order+1, n) inner products of the differences along the chains, of a block's M streams."""
        blocks, size, _ = self._forms.shape
        streams = size // self._count
        places = (np.arange(streams)[:, None, None] * self._count + chains).ravel()
        rows = self._forms.take(places, axis=1).reshape(blocks, streams, *chains.shape, size)
        rows = rows[:, :, :-1] - rows[:, :, 1:]
        both = rows.take(places, axis=-1).reshape(*rows.shape[:-1], streams, *chains.shape)
        found: Floats = both[..., :-1, :] - both[..., 1:, :]
        return found

    def _weights_of(self, chains: Ints) -> Floats:
        """(n, n) what the products of errors are multiplied by: 0 where one is not known."""
        weights: Floats = self._weights.take(chains[0], axis=0).take(chains[0], axis=1)
        if self._unknown is None:
            return weights
        residuals = np.zeros((chains.shape[1], self._count), np.float32)  # 1 for those that an error is made of
        residuals[np.arange(chains.shape[1]), chains] = 1.0
        apart = residuals @ self._unknown @ residuals.T > 0.5
        np.fill_diagonal(apart, False)
        return np.where(apart, 0.0, weights)


def _blocks(form: Floats, *, mixed: bool) -> Floats:
    """(B, D, D) a form (S, N, S, N): one block of all streams, or where they do not mix, one of each."""
    streams, count = form.shape[:2]
    if mixed:
        return form.reshape(1, streams * count, streams * count)
    return form[np.arange(streams), :, np.arange(streams), :]


def _terms(products: Floats, weights: Floats) -> tuple[Floats, Floats, float]:
    """The curvature (B, m, m), the slope (B, m) and the value of the cost where all coefficients are 0."""
    weighted = products * weights[:, None, None, :]
    slope = weighted[:, :, 1:, :, :, 0].sum(axis=(-2, -1))
    unknowns = slope[0].size
    curvature = weighted[:, :, 1:, :, :, 1:].reshape(len(slope), unknowns, unknowns)
    return curvature, slope.reshape(len(slope), unknowns), float(weighted[:, :, 0, :, :, 0].sum())


def _steadied(curvature: Floats) -> Floats:
    """The curvature with a little more of its diagonal: differences that vanish, or are alike, leave a coefficient small."""
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    most = np.maximum(diagonal.max(axis=1, keepdims=True, initial=0.0), 1e-300)
    return _with_diagonal(curvature, 1e-6 * diagonal + 1e-12 * most)


def _with_diagonal(matrices: Floats, added: Floats) -> Floats:
    """Matrices (B, m, m) with (B, m) added on their diagonals."""
    found = matrices.copy()
    np.einsum("bmm->bm", found)[...] += added
    return found


def _bounded_solution(curvature: Floats, slope: Floats) -> Floats:
    """(B, m) the coefficients that make the cost least, none above the bound.

    Where one is, differences that are next to nothing are held for more than they are, until none is; at last it is cut.
    """
    best = np.asarray(np.linalg.solve(curvature, slope[..., None]), dtype=np.float64)[..., 0]
    diagonal = np.diagonal(curvature, axis1=1, axis2=2)
    for ridge in RIDGES:
        if np.abs(best).max(initial=0.0) <= _gram.LARGEST:
            return best
        added = ridge * (diagonal + diagonal.mean(axis=1, keepdims=True))
        best = np.asarray(np.linalg.solve(_with_diagonal(curvature, added), slope[..., None]), dtype=np.float64)[..., 0]
    bounded: Floats = np.clip(best, -_gram.LARGEST, _gram.LARGEST)
    return bounded
