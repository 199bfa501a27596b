"""A bench for forecasts: a method is a function of what a run knows so far, run on a `Bypass` with a fixed mask.

So a new method is a few lines. Methods of others that are such functions are here, written from their formulas; those that
decide during the run are in `rules`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import define, field
from benchmarks.quality.bypass import Masked
from numpy.typing import NDArray

import magpolicy
from torch import Tensor, nn

Floats = NDArray[np.float64]


@define
class Past:
    """What is known in one stream when a step asks."""

    stream: str
    levels: Sequence[float]
    """Noise level of each step."""
    inputs: dict[int, Tensor] = field(factory=dict)
    """Input of the stack at each step so far, this one's too."""
    computed: dict[int, Tensor] = field(factory=dict)
    """Residuals computed so far, by step, oldest first."""
    added: dict[int, Tensor] = field(factory=dict)
    """What each step so far added: computed or forecast."""

    def mixed(self, weights: dict[int, float]) -> Tensor:
        """A weighted sum of computed residuals, by step."""
        return sum(weight * self.computed[step] for step, weight in weights.items())  # type: ignore[return-value]

    def latest(self, count: int) -> list[int]:
        """The steps computed last, newest first, at most so many."""
        return list(self.computed)[: -count - 1 : -1]


Forecast = Callable[[Past, int], Tensor]
Correct = Callable[[Past, int, Tensor], Tensor]


class Forecasting(Masked):
    """Skipped steps add what ``forecast`` says, computed ones what ``correct`` makes of the residual."""

    def __init__(self, network: Any, mask: Sequence[bool], forecast: Forecast, correct: Correct | None = None) -> None:
        super().__init__(network, mask)
        self.forecast, self.correct = forecast, correct

    def start(self) -> None:
        super().start()
        self.past: dict[str, Past] = {}

    def decide(self, stream: str, step: int, hidden: Tensor, block: nn.Module, kwargs: dict[str, Any]) -> bool:
        self.past.setdefault(stream, Past(stream, self.sigmas)).inputs[step] = hidden
        return super().decide(stream, step, hidden, block, kwargs)

    def residual(self, stream: str, step: int, hidden: Tensor) -> Tensor:
        past = self.past[stream]
        past.added[step] = self.forecast(past, step)
        return past.added[step]

    def learn(self, stream: str, step: int, residual: Tensor) -> None:
        self.past[stream].computed[step] = residual

    def corrected(self, stream: str, step: int, residual: Tensor) -> Tensor:
        past = self.past[stream]
        past.added[step] = residual if self.correct is None else self.correct(past, step, residual)
        return past.added[step]


def planned(schedule: magpolicy.Schedule) -> Forecast:
    """Ours: the coefficients of a plan."""
    rows = dict(zip(schedule.streams, schedule.coefficients, strict=True))

    def forecast(past: Past, step: int) -> Tensor:
        coefficients = rows[past.stream][step]
        newest = past.latest(len(coefficients) + 1)
        found = past.computed[newest[0]]
        for c, newer, older in zip(coefficients, newest[:-1], newest[1:], strict=True):
            found = found + c * (past.computed[newer] - past.computed[older])
        return found

    return forecast


def differences(past: Past, order: int) -> list[Tensor]:
    """The newest residual and its differences over the computed steps, each divided by the latest interval (as TaylorSeer)."""
    newest = past.latest(order + 1)
    values = [past.computed[step] for step in newest]
    found = [values[0]]
    for _ in range(len(newest) - 1):
        values = [(newer - older) / (newest[i] - newest[i + 1]) for i, (newer, older) in enumerate(itertools.pairwise(values))]
        found.append(values[0])
    return found


def hicache(order: int, scale: float) -> Forecast:
    """HiCache (Feng et al., arXiv 2508.16984): TaylorSeer's differences on Hermite polynomials, both scaled.

    F + sum_k scale^k H_k(scale x) / k! D_k, x the steps since the last computed one, H_k the physicists' polynomials.
    """

    def forecast(past: Past, step: int) -> Tensor:
        x = scale * (step - past.latest(1)[0])
        found, factorial = 0.0, 1
        for k, difference in enumerate(differences(past, order)):
            factorial *= max(k, 1)
            found = found + scale**k * np.polynomial.hermite.hermval(x, [0] * k + [1]) / factorial * difference
        return found  # type: ignore[return-value]

    return forecast


def foca(reading: str) -> Forecast:
    """FoCa (Zheng et al., arXiv 2508.16211): BDF2 from the last two features, forecast or computed, then Heun's.

    Its derivatives are differences: the reliable one over the interval of the last two computed steps, others over one step.
    The paper leaves open where Heun's step starts; ``reading`` says: the "previous" step, or the last "computed" one.
    """

    def forecast(past: Past, step: int) -> Tensor:
        newest = past.latest(2)
        if len(newest) < 2:
            return past.added[step - 1]
        last, before = past.added[step - 1], past.added[step - 2]
        reliable = (past.computed[newest[0]] - past.computed[newest[1]]) / (newest[0] - newest[1])
        ahead = (4 * last - before + 2 * (last - before)) / 3 - last
        if reading == "previous":
            return last + (reliable + ahead) / 2
        return past.computed[newest[0]] + (step - newest[0]) * (reliable + ahead) / 2

    return forecast


def spectrum(count: int, *, ridge: float, degree: int = 4, share: float = 1.0) -> Forecast:
    """Spectrum (Han et al., arXiv 2603.01623): Chebyshev polynomials over the run's steps, ridge over all computed ones.

    ``share`` of it is mixed with a linear extrapolation (1: it alone, as published; 0.5 is the authors' later advice).
    """

    def basis(steps: Sequence[float]) -> Floats:
        return np.polynomial.chebyshev.chebvander(2 * np.asarray(steps, float) / count - 1, degree)

    def forecast(past: Past, step: int) -> Tensor:
        at = list(past.computed)
        known = basis(at)
        weights = basis([step])[0] @ np.linalg.solve(known.T @ known + ridge * np.eye(degree + 1), known.T)
        found = past.mixed({i: share * float(w) for i, w in zip(at, weights, strict=True)})
        return found if share == 1 else found + (1 - share) * hicache(1, 1.0 / np.sqrt(2))(past, step)

    return forecast


def learned_linear(grams: dict[str, Floats], history: int, ridge: float = 1e-6) -> Forecast:
    """L2P (Shen et al., arXiv 2604.26365): weights for each step and its last computed residuals, of least mean squared error.

    The authors train them by gradient steps on a few runs; here they are the exact minimum on the calibration's inner products.
    Their number of residuals is not stated in the abstract, and their code is not out, so ``history`` is swept.
    """

    @functools.cache
    def weights(stream: str, at: tuple[int, ...], step: int) -> Floats:
        gram = grams[stream]
        known = gram[np.ix_(at, at)]
        found: Floats = np.linalg.solve(known + ridge * np.trace(known) / len(at) * np.eye(len(at)), gram[list(at), step])
        return found

    def forecast(past: Past, step: int) -> Tensor:
        at = tuple(past.latest(history))
        return past.mixed(dict(zip(at, weights(past.stream, at, step).tolist(), strict=True)))

    return forecast
