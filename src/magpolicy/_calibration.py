"""What one run without skipping teaches: inner products of residuals, and everything that follows from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks, _gram
from magpolicy._curve import Curve
from magpolicy._errors import ArgumentError
from magpolicy._gram import Floats


def _as_matrix(value: Any) -> Floats:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"gram={_checks._short(value)} must be an array of numbers, (steps, window + 1)") from None
    matrix.flags.writeable = False
    return matrix


def _as_floats(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value))


def _as_levels(value: Any) -> tuple[float, ...]:
    return _checks.levels("sigmas", value)


@frozen(eq=False)
class StreamMoments:
    """Moments of one stream's residuals over a run of N evaluations, within a window of W.

    Args:
        gram: (N, W+1); ``gram[i, k]`` is the mean over samples, tokens and channels of ``r_i * r_(i-k)``, nan where k > i or
            where it is not known.
        ratios: (N,) magnitude ratios, mean over tokens of ``|r_i| / |r_(i-1)|``; the first is 1.
        spread: (N,) standard deviation over tokens of that quotient; the first is 0.
        cosine: (N,) mean over tokens of ``1 - cos(r_i, r_(i-1))``; the first is 0.
    """

    gram: Floats = field(converter=_as_matrix)
    ratios: tuple[float, ...] = field(converter=_as_floats)
    spread: tuple[float, ...] = field(converter=_as_floats)
    cosine: tuple[float, ...] = field(converter=_as_floats)

    @property
    def window(self) -> int:
        """Evaluations back to which inner products are known."""
        return int(self.gram.shape[1]) - 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamMoments):
            return NotImplemented
        mine, theirs = ((m.ratios, m.spread, m.cosine) for m in (self, other))
        return mine == theirs and np.array_equal(self.gram, other.gram, equal_nan=True)


@frozen(eq=False, kw_only=True)
class Calibration:
    """What one or several full runs of a model say about reusing its residuals."""

    sigmas: tuple[float, ...] = field(converter=_as_levels)
    """Noise level of each evaluation."""
    streams: Mapping[str, StreamMoments]
    cross: Mapping[tuple[str, str], Floats] = field(factory=dict)
    """Per pair of streams (a, b) an (N, 2W+1) array: ``[i, W+d]`` is the mean of ``r^a_i * r^b_(i+d)``, nan where not known."""
    provenance: Mapping[str, Any] = field(factory=dict)
    name: str = ""
    aliases: tuple[str, ...] = field(default=(), converter=tuple)

    @property
    def steps(self) -> int:
        """Evaluations of the calibrated run."""
        return len(self.sigmas)

    @property
    def window(self) -> int:
        """Evaluations back to which inner products are known, in every stream."""
        return min(moments.window for moments in self.streams.values())

    @functools.cached_property
    def curve(self) -> Curve:
        """The magnitude ratios, as the published rule reads them."""
        return Curve({name: moments.ratios for name, moments in self.streams.items()}, sigmas=self.sigmas)

    def hold_error(self, stream: str, j: int, i: int) -> float:
        """|r_i - r_j| / |r_i|: the relative error of reusing the residual of evaluation j at i; nan where not known."""
        return self._error(stream, j, j, i, 0.0)

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        """The c for which r_j + c (r_j - r_p) is closest to r_i; 0 where forecasting does not pay or is not known."""
        gram = self.of(stream).gram
        uu, uv, vv = _gram.differences(gram, p, j, i)
        return float(_gram.best_coefficient(uu, uv, vv, _gram.inner(gram, j, j)))

    def forecast_error(self, stream: str, p: int, j: int, i: int) -> float:
        """Relative error of that forecast of r_i; nan where not known."""
        return self._error(stream, p, j, i, self.coefficient(stream, p, j, i))

    def _error(self, stream: str, p: int, j: int, i: int, c: float) -> float:
        gram = self.of(stream).gram
        left = _gram.remaining(*_gram.differences(gram, p, j, i), c)
        return float(np.sqrt(left / _gram.inner(gram, i, i)))

    def of(self, stream: str) -> StreamMoments:
        """Moments of ``stream``; a stream that was not calibrated reads the first one's."""
        return self.streams.get(stream) or next(iter(self.streams.values()))

    def resample(self, *, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Calibration:
        """The calibration of another run of the same model (to come)."""
        if steps in (None, self.steps) and (sigmas is None or _checks.levels("sigmas", sigmas) == self.sigmas):
            return self
        raise NotImplementedError
