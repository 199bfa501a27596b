"""Moments of one stream's residuals: what a calibration holds of each stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._gram import Floats

MAX_PRODUCT = 1e40
"""Of two residuals, per element: more than float32 holds. A product of three of them is still a float."""


def matrix(name: str, value: Any, dimensions: int) -> Floats:
    """``value`` as a read-only array of float64 with that many axes; nan stands for what is not known."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(())
    if matrix.ndim != dimensions or 0 in matrix.shape[-2:]:
        raise ArgumentError(f"{name}={_checks._short(value)} must be an array of numbers with {dimensions} axes, none empty")
    if np.isinf(matrix).any():
        raise ArgumentError(f"{name} holds infinity; calibrate in a dtype in which the residual's squares are finite")
    if (large := np.abs(matrix) > MAX_PRODUCT).any():
        raise ArgumentError(f"{name} holds {matrix[large][0]:g}, at most {MAX_PRODUCT:g} is read; calibrate again")
    matrix.flags.writeable = False
    return matrix


def _as_gram(value: Any) -> Floats:
    return matrix("gram", value, 2)


def _as_samples(value: Any) -> Floats | None:
    return None if value is None else matrix("samples", value, 3)


def _as_ratios(value: Any) -> tuple[float, ...]:
    return _checks.ratios("ratios", value)


def _as_spread(value: Any) -> tuple[float, ...]:
    return _statistics("spread", value)


def _as_cosine(value: Any) -> tuple[float, ...]:
    return _statistics("cosine", value)


def _statistics(name: str, value: Any) -> tuple[float, ...]:
    given = _checks.listed(name, value, "numbers")
    return tuple(_checks.number(f"{name}[{i}]", v, -1e-6, MAX_PRODUCT, example="0.0") for i, v in enumerate(given))


@frozen(eq=False)
class StreamMoments:
    """Moments of one stream's residuals over a run of N evaluations, within a window of W.

    Attributes:
        gram: (N, W+1); ``gram[i, k]`` is the mean over samples, tokens and channels of ``r_i * r_(i-k)``, nan where k > i or
            where it is not known.
        ratios: (N,) magnitude ratios, mean over tokens of ``|r_i| / |r_(i-1)|``; the first is 1.
        spread: (N,) standard deviation over tokens of that quotient; the first is 0.
        cosine: (N,) mean over tokens of ``1 - cos(r_i, r_(i-1))``; the first is 0.
        samples: (S, N, W+1) the Gram matrices of the samples that ``gram`` is the mean of; ``None``: there is one sample.

    Raises:
        ArgumentError: shapes that do not fit each other, or values that cannot be.
    """

    __module__ = "magpolicy"

    gram: Floats = field(converter=_as_gram)
    ratios: tuple[float, ...] = field(converter=_as_ratios)
    spread: tuple[float, ...] = field(converter=_as_spread)
    cosine: tuple[float, ...] = field(converter=_as_cosine)
    samples: Floats | None = field(default=None, converter=_as_samples, repr=False)

    def __attrs_post_init__(self) -> None:
        count = len(self.gram)
        for name in ("ratios", "spread", "cosine"):
            if len(getattr(self, name)) != count:
                raise ArgumentError(
                    f"{name} has {len(getattr(self, name))} values, gram has {count} rows; give one an evaluation"
                )
        if (self.gram[:, 0] < 0).any():
            worst = int(np.nanargmin(self.gram[:, 0]))
            raise ArgumentError(f"gram[{worst}, 0]={self.gram[worst, 0]:g} must be >= 0: it is a squared length")
        if self.samples is not None and self.samples.shape[1:] != self.gram.shape:
            raise ArgumentError(f"samples has shape {self.samples.shape}, expected (samples, *{self.gram.shape})")

    @property
    def window(self) -> int:
        """How many evaluations back inner products reach."""
        return int(self.gram.shape[1]) - 1

    @property
    def each(self) -> Floats:
        """(S, N, W+1) the Gram matrix of each sample."""
        return self.gram[None] if self.samples is None else self.samples

    def part(self, first: int, stop: int) -> StreamMoments:
        """The moments of the evaluations ``first`` to ``stop`` (exclusive) alone, as if the run began there."""

        def cut(gram: Floats) -> Floats:
            rows = gram[..., first:stop, :].copy()
            before = np.arange(rows.shape[-2])[:, None] < np.arange(rows.shape[-1])[None, :]
            rows[..., before] = np.nan
            return rows

        samples = None if self.samples is None else cut(self.samples)
        ratios, spread, cosine = (values[first:stop] for values in (self.ratios, self.spread, self.cosine))
        return StreamMoments(cut(self.gram), ratios, spread, cosine, samples)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamMoments):
            return NotImplemented
        mine, theirs = ((m.ratios, m.spread, m.cosine) for m in (self, other))
        return mine == theirs and np.array_equal(self.each, other.each, equal_nan=True)
