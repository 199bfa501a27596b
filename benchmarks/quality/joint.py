"""Forecast coefficients fitted together, over one, two or three differences of computed residuals: what the lab found to be
worth it.

A skipped residual is forecast as r_j + c1 (r_j - r_p) + c2 (r_p - r_q) from the computed residuals j > p > q before it. The
errors eps_i of all skipped steps enter the latent as h_i eps_i (h: step size), add up as vectors and fade like the ratio of
noise levels, so all coefficients of a schedule are chosen at once to minimise

    sum_ik K_ik h_i h_k <eps_i, eps_k> + ridge * sum_i h_i^2 sum_s w_s^2 |eps^s_i|^2,    K_ik = min(s_i, s_k) / max(s_i, s_k)

with eps the error of the guided combination (stream weights w), s_i the level that step i goes to. Quadratic in the
coefficients: one linear solve, from inner products of residuals alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from benchmarks.quality.bypass import Bypass
from numpy.typing import NDArray

import magpolicy
from torch import Tensor, nn

Floats = NDArray[np.float64]


def inner_products(calibration: magpolicy.Calibration, streams: Sequence[str]) -> Floats:
    """All inner products ``(S*N, S*N)`` of the residuals of ``streams``; 0 beyond the window."""
    count, found = calibration.steps, {}
    for stream in streams:
        gram, square = calibration.streams[stream].gram, np.zeros((count, count))
        for back in range(gram.shape[1]):
            at = np.arange(back, count)
            square[at, at - back] = square[at - back, at] = gram[at, back]
        found[stream, stream] = square
    for (first, second), cross in calibration.cross.items():
        window, square = cross.shape[1] // 2, np.zeros((count, count))
        for i in range(count):
            for d in range(-window, window + 1):
                if 0 <= i + d < count:
                    square[i, i + d] = cross[i, window + d]
        found[first, second], found[second, first] = square, square.T
    zero = np.zeros((count, count))
    return np.nan_to_num(np.block([[found.get((a, b), zero) for b in streams] for a in streams]))


def kernel(sigmas: Sequence[float]) -> tuple[Floats, Floats]:
    """Step sizes ``(N,)`` and how much of the error of one step is still there at another, ``(N, N)``."""
    sizes = -np.diff(np.append(sigmas, 0.0))
    reached = np.append(sigmas[1:], sigmas[-1] / 2)
    return sizes, np.minimum.outer(reached, reached) / np.maximum.outer(reached, reached)


def fit(
    calibration: magpolicy.Calibration,
    mask: Sequence[bool],
    factors: Mapping[str, float],
    *,
    order: int = 2,
    ridge: float = 0.1,
) -> dict[str, Floats]:
    """Per stream ``(N, order + 1)``: a skipped step's weights on the last computed residuals, newest first; they sum to 1."""
    streams, count = list(factors), len(mask)
    gram = inner_products(calibration, streams)
    sizes, fading = kernel(calibration.sigmas)
    weight = sizes[:, None] * fading * sizes
    base = np.zeros((len(streams), count, len(gram)))  # error of holding, on the residuals, per stream
    rows, places, history = [], [], []
    for i, computes in enumerate(mask):
        if computes:
            history = [i, *history][: order + 1]
            continue
        for s, stream in enumerate(streams):
            at = s * count
            base[s, i, at + history[0]] += factors[stream]
            base[s, i, at + i] -= factors[stream]
            for o, (newer, older) in enumerate(itertools.pairwise(history)):
                row = np.zeros(len(gram))
                row[at + newer], row[at + older] = factors[stream], -factors[stream]
                rows.append(row)
                places.append((s, i, o))
    weights = {stream: np.tile(np.eye(order + 1)[0], (count, 1)) for stream in streams}
    if not rows:
        return weights
    moves = np.array(rows)
    s_of, i_of, _ = np.array(places).T
    against, products = moves @ gram, moves @ gram @ moves.T
    own = (s_of[:, None] == s_of) & (i_of[:, None] == i_of)
    square = weight[np.ix_(i_of, i_of)] * products
    alone = own * (sizes[i_of] ** 2)[:, None] * products
    right = -(weight[i_of] * (against @ base.sum(axis=0).T)).sum(axis=1)
    right_alone = -(sizes[i_of] ** 2) * (against * base[s_of, i_of]).sum(axis=1)
    left = square + ridge * alone
    left += 1e-6 * np.diag(np.diag(left))
    for (s, i, o), c in zip(places, np.linalg.solve(left, right + ridge * right_alone), strict=True):
        weights[streams[s]][i, o] += c
        weights[streams[s]][i, o + 1] -= c
    return weights


def cost(
    calibration: magpolicy.Calibration, mask: Sequence[bool], weights: Mapping[str, Floats], factors: Mapping[str, float]
) -> float:
    """The first sum above."""
    streams, count = list(factors), len(mask)
    sizes, fading = kernel(calibration.sigmas)
    errors = np.zeros((count, count * len(streams)))
    for s, stream in enumerate(streams):
        history: list[int] = []
        for i, computes in enumerate(mask):
            if computes:
                history = [i, *history]
                continue
            errors[i, s * count + i] -= factors[stream]
            for value, at in zip(weights[stream][i], history, strict=False):
                errors[i, s * count + at] += factors[stream] * value
    products = errors @ inner_products(calibration, streams) @ errors.T
    return float((sizes[:, None] * fading * sizes * products).sum())


class Weighted(Bypass):
    """A mask, and for each skipped step a weighted sum of the last computed residuals."""

    def __init__(self, network: Any, mask: Sequence[bool], weights: Mapping[str, Floats]) -> None:
        super().__init__(network)
        self.mask, self.weights = mask, weights

    def start(self) -> None:
        self.kept: dict[str, list[Tensor]] = {}

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        return bool(self.mask[step])

    def residual(self, stream: str, step: int, hidden: Tensor) -> Tensor:
        parts = zip(self.weights[stream][step], self.kept[stream], strict=False)
        total: Tensor = sum(float(weight) * kept for weight, kept in parts)  # type: ignore[assignment]
        return total

    def learn(self, stream: str, step: int, residual: Tensor) -> None:
        most = self.weights[stream].shape[1]
        self.kept[stream] = [residual, *self.kept.get(stream, [])][:most]
