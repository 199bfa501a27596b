"""The errors a plan is made from: of each stream's forecasts, and of what the streams are combined to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats, ForecastTable

Lookup = Callable[[Any, Any], Floats]


@frozen(eq=False)
class ErrorTables:
    """Forecast tables of a run's streams, and their errors combined."""

    calibration: Calibration
    tables: Mapping[str, ForecastTable]
    forecast: str
    """How skipped residuals are forecast."""
    factors: Mapping[str, float] | None
    """What each stream is multiplied with in the combination the sampler uses; ``None``: not known, streams count alike."""
    _known: dict[str, Any] = field(factory=dict, init=False)

    @classmethod
    def of(
        cls, calibration: Calibration, reach: int, forecast: str, damping: float, factors: Mapping[str, float] | None
    ) -> ErrorTables:
        """Tables of every stream for gaps up to ``reach`` evaluations."""
        tables = {
            name: _gram.tabulate(m.gram, reach, forecast, levels=calibration.sigmas, damping=damping, samples=m.samples)
            for name, m in calibration.streams.items()
        }
        return cls(calibration, tables, forecast, factors)

    @property
    def count(self) -> int:
        """Evaluations of the run."""
        return self.calibration.steps

    @property
    def reach(self) -> int:
        """Longest gap the tables hold."""
        return int(next(iter(self.tables.values())).squared.shape[2]) - 1

    def gram(self, stream: str) -> Floats:
        """The stream's banded inner products."""
        return self.calibration.streams[stream].gram

    def relative(self, stream: str) -> Floats:
        """Relative error of each of the stream's forecasts ``[a, j, k]``; infinite where not known."""
        if stream not in self._known:
            size = _at(lengths(self.gram(stream)), self.tables[stream].squared.shape)
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.sqrt(self.tables[stream].squared / size)
            self._known[stream] = np.where(np.isfinite(share), share, np.inf)
        found: Floats = self._known[stream]
        return found

    def combined(self) -> tuple[Floats, Floats]:
        """Squared error of the combined streams ``[a, j, k]``, and their squared length ``[i]``."""
        squared: Any = 0.0
        size: Any = 0.0
        if self.factors is None:
            for name, table in self.tables.items():
                squared = squared + table.squared / len(self.tables)
                size = size + lengths(self.gram(name)) / len(self.tables)
            return squared, size
        for first, second, factor in self.pairs():
            with np.errstate(invalid="ignore"):  # 0 times what is not known, or unknown of both signs
                squared = squared + factor * self._product(first, second)
            size = size + factor * self.look_up(first, second)(np.arange(self.count), np.arange(self.count))
        # Streams that cancel leave a combination shorter than rounding; it is never negative.
        unknown = np.logical_or.reduce([np.isinf(t.squared) for t in self.tables.values()])
        return np.where(unknown | np.isnan(squared), np.inf, np.maximum(squared, 0.0)), np.maximum(size, 0.0)

    def pairs(self) -> list[tuple[str, str, float]]:
        """Every pair of streams with the factor its product has in the combination's square; alike without factors."""
        names = list(self.tables)
        if self.factors is None:
            return [(name, name, 1.0 / len(names)) for name in names]
        own = [(name, name, self.factors[name] ** 2) for name in names]
        mixed = [
            (a, b, 2 * self.factors[a] * self.factors[b])
            for place, a in enumerate(names)
            for b in names[place + 1 :]
            if (a, b) in self.calibration.cross or (b, a) in self.calibration.cross
        ]
        return own + mixed

    def form(self) -> Floats:
        """The square of the combination as a form over the residuals of all streams, one stream after another.

        (S*N, S*N): products times the factors of their streams, nan where not known.
        """
        names, count = list(self.tables), self.count
        at = {name: slice(place * count, (place + 1) * count) for place, name in enumerate(names)}
        i, j = np.arange(count)[:, None], np.arange(count)[None, :]
        form = np.zeros((len(names) * count, len(names) * count))
        for a, b, factor in self.pairs():
            products = factor * self.look_up(a, b)(i, j) / (1 if a == b else 2)
            form[at[a], at[b]], form[at[b], at[a]] = products, products.T
        return form

    def look_up(self, first: str, second: str) -> Lookup:
        """<r^first_i, r^second_j> as a function of positions."""
        if first == second:
            return lambda i, j: _gram.inner(self.gram(first), i, j)
        cross = self.calibration.cross
        if (first, second) in cross:
            return lambda i, j: _gram.cross_inner(cross[first, second], i, j)
        return lambda i, j: _gram.cross_inner(cross[second, first], j, i)

    def _product(self, first: str, second: str) -> Floats:
        """Inner product of the two streams' errors at each skipped evaluation."""
        if first == second:
            return self.tables[first].squared
        look_up = self.look_up(first, second)
        mine, theirs = self.tables[first].coefficient, self.tables[second].coefficient
        a, j, k = axes(mine.shape)
        places = (j + k, j, np.maximum(j - a, 0))
        total = np.zeros(mine.shape)
        for here, c in zip(places, (np.ones(()), -(1.0 + mine), mine), strict=True):
            for there, d in zip(places, (np.ones(()), -(1.0 + theirs), theirs), strict=True):
                share = c * d
                total += np.where(share == 0.0, 0.0, share * look_up(here, there))
        return total


def axes(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """The positions a, j, k of a table's entries, ready to broadcast."""
    return np.ix_(*map(np.arange, shape))  # type: ignore[return-value]


def mean_length(size: Floats) -> float:
    """Mean of squared lengths over the evaluations that are known, never 0."""
    known = size[np.isfinite(size)]
    return max(float(known.mean()), 1e-300) if known.size else 1.0


def lengths(gram: Floats) -> Floats:
    """|r_i|^2 of each evaluation."""
    return gram[:, 0]


def _at(values: Floats, shape: tuple[int, ...]) -> Floats:
    """``values[j + k]`` for each ``[a, j, k]``; nan past the end."""
    _, j, k = axes(shape)
    place = j + k
    found: Floats = np.where(place < len(values), values[np.minimum(place, len(values) - 1)], np.nan)
    return found


def skipped_values(values: Floats, shape: tuple[int, ...]) -> Floats:
    """``values[j + k]`` for each ``[a, j, k]``, 0 past the end."""
    return np.nan_to_num(_at(values, shape))


def factors_of(guidance: Any, calibration: Calibration) -> dict[str, float] | None:
    """What each stream is multiplied with: s and 1-s for a guidance scale s, or as a mapping says.

    By default the scale the calibration was made with, where its provenance has it.

    Raises:
        ArgumentError: a scale for other than two streams, or a mapping that leaves one out.
    """
    names = list(calibration.streams)
    if guidance is None:
        known = calibration.provenance.get("guidance")
        if len(names) != 2 or isinstance(known, bool) or not isinstance(known, int | float):
            return None
        guidance = known
    if isinstance(guidance, Mapping):
        missing = [name for name in names if name not in guidance]
        if missing:
            left = ", ".join(map(repr, missing))
            raise ArgumentError(f"guidance={_checks._short(dict(guidance))} leaves out {left}; give a factor for each stream")
        return {name: _checks.number(f"guidance[{name!r}]", guidance[name], -np.inf, example="1.0") for name in names}
    scale = _checks.number("guidance", guidance, -np.inf, example="5.0")
    if len(names) == 1:
        return None
    if len(names) != 2:
        raise ArgumentError(
            f"guidance={scale:g} combines two streams, there are {len(names)}; try guidance={{'{names[0]}': ...}}"
        )
    first, second = conditional_first(names)
    return {first: scale, second: 1.0 - scale}


def conditional_first(names: Sequence[str]) -> tuple[str, str]:
    """The two streams, the conditional one first: as listed, unless the names say otherwise."""
    first, second = names
    swapped = first.lower().startswith(("uncond", "neg")) and not second.lower().startswith(("uncond", "neg"))
    return (second, first) if swapped else (first, second)
