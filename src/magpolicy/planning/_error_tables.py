"""The errors a plan is made from: of each stream's forecasts, and of the combination that guidance makes of the streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from magpolicy.calibration import _gram
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats, ForecastTable

Products = Callable[[Any, Any], Floats]
"""Inner products of the residuals of two streams, as a function of two arrays of positions."""


@frozen(eq=False)
class ErrorTables:
    """The error of every possible skip of a run, in each stream and in the combination of all.

    Tables are indexed ``[a, j, k]``: the last computed evaluation is j, the one before it j-a (a=0: there is none), and the
    skipped one j+k.
    """

    calibration: Calibration
    """The inner products of the run's residuals."""
    forecasts: Mapping[str, ForecastTable]
    """Per stream the forecast of every skip, and its error."""
    forecast: str
    """How skipped residuals are forecast."""
    factors: Mapping[str, float] | None
    """What each stream is multiplied with in the combination the sampler uses; ``None``: not known, streams count alike."""
    _relative: dict[str, Floats] = field(factory=dict, init=False)

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        longest_gap: int,
        forecast: str,
        *,
        damping: float,
        factors: Mapping[str, float] | None,
    ) -> ErrorTables:
        """Tables of every stream for gaps of up to ``longest_gap`` evaluations."""
        forecasts = {
            name: _gram.tabulate(
                moments.gram, longest_gap, forecast, levels=calibration.sigmas, damping=damping, samples=moments.samples
            )
            for name, moments in calibration.streams.items()
        }
        return cls(calibration, forecasts, forecast, factors)

    def of_stream(self, stream: str) -> ErrorTables:
        """The same of one stream alone."""
        alone = evolve(self.calibration, streams={stream: self.calibration.streams[stream]}, cross={})
        factors = None if self.factors is None else {stream: self.factors[stream]}
        return ErrorTables(alone, {stream: self.forecasts[stream]}, self.forecast, factors)

    @property
    def count(self) -> int:
        """N, the evaluations of the run."""
        return self.calibration.steps

    @property
    def longest_gap(self) -> int:
        """Longest gap the tables hold."""
        return int(next(iter(self.forecasts.values())).squared.shape[2]) - 1

    def gram(self, stream: str) -> Floats:
        """(N, W+1) the stream's banded inner products."""
        return self.calibration.streams[stream].gram

    def relative(self, stream: str) -> Floats:
        """``[a, j, k]`` the relative error of each of the stream's forecasts; infinite where not known."""
        if stream not in self._relative:
            squared = self.forecasts[stream].squared
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.sqrt(squared / _at_skipped(squared_lengths(self.gram(stream)), squared.shape))
            self._relative[stream] = np.where(np.isfinite(error), error, np.inf)
        return self._relative[stream]

    def combined(self) -> tuple[Floats, Floats]:
        """The combined streams: ``[a, j, k]`` the squared error of each skip, and (N,) the squared length of each residual."""
        squared: Any = 0.0
        size: Any = 0.0
        if self.factors is None:
            for name, table in self.forecasts.items():
                squared = squared + table.squared / len(self.forecasts)
                size = size + squared_lengths(self.gram(name)) / len(self.forecasts)
            return squared, size
        everywhere = np.arange(self.count)
        for first, second, factor in self.pairs():
            with np.errstate(invalid="ignore"):  # 0 times what is not known, or unknown of both signs
                squared = squared + factor * self._error_products(first, second)
            size = size + factor * self.products(first, second)(everywhere, everywhere)
        # Streams that cancel leave a combination shorter than rounding; it is never negative.
        unknown = np.logical_or.reduce([np.isinf(table.squared) for table in self.forecasts.values()])
        return np.where(unknown | np.isnan(squared), np.inf, np.maximum(squared, 0.0)), np.maximum(size, 0.0)

    def pairs(self) -> list[tuple[str, str, float]]:
        """Every pair of streams with the factor that its product has in the square of the combination."""
        names = list(self.forecasts)
        if self.factors is None:
            return [(name, name, 1.0 / len(names)) for name in names]
        own = [(name, name, self.factors[name] ** 2) for name in names]
        mixed = [
            (a, b, 2 * self.factors[a] * self.factors[b])
            for index, a in enumerate(names)
            for b in names[index + 1 :]
            if (a, b) in self.calibration.cross or (b, a) in self.calibration.cross
        ]
        return own + mixed

    def quadratic_form(self) -> Floats:
        """The square of the combination as a quadratic form over the residuals of all streams, one stream after another.

        (S*N, S*N): inner products times the factors of their streams, nan where not known.
        """
        names, count = list(self.forecasts), self.count
        rows = {name: slice(index * count, (index + 1) * count) for index, name in enumerate(names)}
        i, j = np.arange(count)[:, None], np.arange(count)[None, :]
        form = np.zeros((len(names) * count, len(names) * count))
        for a, b, factor in self.pairs():
            block = factor * self.products(a, b)(i, j) / (1 if a == b else 2)
            form[rows[a], rows[b]], form[rows[b], rows[a]] = block, block.T
        return form

    def products(self, first: str, second: str) -> Products:
        """<r^first_i, r^second_j> as a function of i and j."""
        if first == second:
            return lambda i, j: _gram.inner(self.gram(first), i, j)
        cross = self.calibration.cross
        if (first, second) in cross:
            return lambda i, j: _gram.cross_inner(cross[first, second], i, j)
        return lambda i, j: _gram.cross_inner(cross[second, first], j, i)

    def _error_products(self, first: str, second: str) -> Floats:
        """``[a, j, k]`` the inner product of the two streams' errors at each skip."""
        if first == second:
            return self.forecasts[first].squared
        products = self.products(first, second)
        mine, theirs = self.forecasts[first].coefficient, self.forecasts[second].coefficient
        a, j, k = axes(mine.shape)
        positions = (j + k, j, np.maximum(j - a, 0))
        total = np.zeros(mine.shape)
        for here, c in zip(positions, (np.ones(()), -(1.0 + mine), mine), strict=True):
            for there, d in zip(positions, (np.ones(()), -(1.0 + theirs), theirs), strict=True):
                weight = c * d
                total += np.where(weight == 0.0, 0.0, weight * products(here, there))
        return total


def axes(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """The positions a, j, k of a table's entries, ready to broadcast."""
    return np.ix_(*map(np.arange, shape))  # type: ignore[return-value]


def mean_length(size: Floats) -> float:
    """Mean of squared lengths over the evaluations that are known, never 0."""
    known = size[np.isfinite(size)]
    return max(float(known.mean()), 1e-300) if known.size else 1.0


def squared_lengths(gram: Floats) -> Floats:
    """(N,) |r_i|^2 of each evaluation."""
    return gram[:, 0]


def at_skipped(values: Floats, shape: tuple[int, ...]) -> Floats:
    """``[a, j, k]`` the value of the skipped evaluation j+k, 0 past the end and where not known."""
    return np.nan_to_num(_at_skipped(values, shape))


def _at_skipped(values: Floats, shape: tuple[int, ...]) -> Floats:
    _, j, k = axes(shape)
    skipped = j + k
    there: Floats = np.where(skipped < len(values), values[np.minimum(skipped, len(values) - 1)], np.nan)
    return there
