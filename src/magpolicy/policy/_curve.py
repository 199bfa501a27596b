"""Calibrated magnitude ratios over noise levels, and how they serve another number of steps."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from attrs import field, frozen
from numpy.typing import ArrayLike, NDArray

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.policy._flow import flow_sigmas

SINGLE = "single"
_EDGE = 1e-6  # share of the highest calibrated level by which one may lie outside the range: float32 schedules round


def _as_streams(value: Any) -> dict[str, tuple[float, ...]]:
    if isinstance(value, Mapping):
        if not value:
            raise ArgumentError("ratios={} must hold at least one stream; try {'cond': [...], 'uncond': [...]}")
        return {str(key): _checks.ratios(f"ratios[{key!r}]", values) for key, values in value.items()}
    return {SINGLE: _checks.ratios("ratios", value)}


def _as_levels(value: Any) -> tuple[float, ...] | None:
    return None if value is None else _checks.levels("sigmas", value)


@frozen(eq=True, hash=False)
class Curve:
    """Magnitude ratios of one model, per stream, and the noise levels they were measured at.

    ``ratios[stream][i]`` is the mean over tokens of ``|r_i| / |r_(i-1)|``, the growth of the block stack's residual since
    the evaluation before (MagCache, arXiv 2506.09045, section 3). No evaluation precedes the first, and its entry is 1.

    Args:
        ratios: a sequence of ratios, or a mapping from stream name to one; all of one length.
        sigmas: the noise level of each evaluation, strictly decreasing. ``None``: not known; evenly spaced flow levels
            1, 1-1/n, ... are assumed and :attr:`assumed` says so.
        first_step: the step of the calibration run that entry 0 belongs to.

    Raises:
        ArgumentError: a ratio that is not finite and positive, lengths that differ, levels that do not decrease.
    """

    __module__ = "magpolicy"

    ratios: Mapping[str, tuple[float, ...]] = field(converter=_as_streams)
    sigmas: tuple[float, ...] | None = field(default=None, converter=_as_levels, kw_only=True)
    first_step: int = field(default=0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.ratios.items()}
        if len(set(lengths.values())) > 1:
            raise ArgumentError(f"ratios has streams of different lengths {lengths}; give every stream one ratio a step")
        _checks.whole("first_step", self.first_step, 0, example="0")
        if self.sigmas is None:
            return
        if len(self.sigmas) != len(self):
            raise ArgumentError(f"sigmas has {len(self.sigmas)} levels for {len(self)} ratios; give one level a ratio")
        for index, (before, after) in enumerate(itertools.pairwise(self.sigmas)):
            if after >= before:
                raise ArgumentError(
                    f"sigmas[{index + 1}]={after} must be below sigmas[{index}]={before}; noise levels fall during a run"
                )

    def __len__(self) -> int:
        return len(next(iter(self.ratios.values())))

    @property
    def steps(self) -> int:
        """Steps of the calibration run."""
        return self.first_step + len(self)

    @property
    def streams(self) -> tuple[str, ...]:
        """Stream names, in the order a step calls them."""
        return tuple(self.ratios)

    @property
    def assumed(self) -> bool:
        """Whether the noise levels are assumed rather than measured."""
        return self.sigmas is None

    @functools.cached_property
    def levels(self) -> tuple[float, ...]:
        """The noise level of each ratio: ``sigmas``, or the assumed flow schedule."""
        if self.sigmas is not None:
            return self.sigmas
        return flow_sigmas(self.steps)[self.first_step :]

    def of(self, stream: str) -> tuple[float, ...]:
        """Ratios of ``stream``; those of the first stream if ``stream`` was not calibrated."""
        return self.ratios.get(stream) or next(iter(self.ratios.values()))

    def product(self, stream: str | None = None, start: int = 0, stop: int | None = None) -> float:
        """Product of the ratios ``start`` to ``stop`` (exclusive): growth of the residual over that part of the run."""
        return float(np.prod(self.of(stream or self.streams[0])[start:stop]))

    def validate(self) -> tuple[str, ...]:
        """Remarks on a curve that is usable but looks odd; empty if it does not."""
        remarks = []
        for name, values in self.ratios.items():
            if self.first_step == 0 and values[0] != 1.0:
                remarks.append(f"{name}: the first ratio is {values[0]:g}, by convention it is 1")
            for index, value in enumerate(values[1:], 1):
                if not 0.5 <= value <= 2.0:
                    remarks.append(f"{name}: ratio {value:g} at step {index} is a jump; a switch of experts, or a bad step?")
        return tuple(remarks)

    def covers(self, sigmas: Sequence[float]) -> tuple[bool, ...]:
        """For each noise level, whether it lies in the calibrated range."""
        high, low = self.levels[0], self.levels[-1]
        edge = _EDGE * high
        return tuple(low - edge <= s <= high + edge for s in sigmas)

    def reaches(self, sigmas: Sequence[float]) -> bool:
        """Whether it can be read at these noise levels: assumed ones end at 1, and above lies another kind of schedule."""
        return self.sigmas is not None or max(sigmas) <= 1 + _EDGE

    def levels_for(self, steps: int) -> tuple[float, ...]:
        """Noise levels of a ``steps``-step run on this curve's own schedule, interpolated over the share of the run."""
        if steps == self.steps and self.first_step == 0:
            return self.levels
        if self.sigmas is None:
            return flow_sigmas(steps)
        shares = np.append(np.arange(self.first_step, self.steps) / self.steps, 1.0)
        return tuple(np.interp(np.arange(steps) / steps, shares, (*self.sigmas, 0.0)).tolist())

    def resample(
        self,
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        method: Literal["noise_level", "nearest"] = "noise_level",
    ) -> Curve:
        """The curve of another run of the same model.

        ``noise_level`` interpolates the cumulative log magnitude over noise level, so that the product of the ratios
        between two levels does not depend on the levels between them; outside the calibrated range the magnitude stays
        the same. ``nearest`` picks the entry at the nearest share of the run, which does not keep the product (the reference
        implementations' way).

        Args:
            steps: number of steps, on this curve's own schedule.
            sigmas: or the noise levels themselves, one per evaluation, in any order (a final 0 is dropped).

        Raises:
            ArgumentError: both or neither of ``steps`` and ``sigmas``; levels far outside an assumed schedule.
        """
        _checks.one_of("method", method, ("noise_level", "nearest"))
        if (steps is None) == (sigmas is None):
            raise ArgumentError(f"steps={steps} and sigmas={sigmas}: give one of them")
        if steps is not None:
            steps = _checks.steps(steps, example="28")
            target = self.levels_for(steps)
        else:
            target = _checks.levels("sigmas", () if sigmas is None else sigmas)
            self._check_reach(target)
        if target == self.levels:
            return self
        if method == "nearest":
            index = nearest_indices(len(self), len(target))
            ratios = {name: tuple(values[i] for i in index) for name, values in self.ratios.items()}
        else:
            ratios = {name: self._at(name, target) for name in self.ratios}
        keep = steps is not None and self.sigmas is None
        if any(b >= a for a, b in itertools.pairwise(target)):
            return Curve(ratios)  # restarts and second-order samplers: a sequence of evaluations, not a schedule
        return Curve(ratios, sigmas=None if keep else target)

    def _check_reach(self, target: Sequence[float]) -> None:
        if not self.reaches(target):
            raise ArgumentError(
                f"sigmas holds {max(target):g}, but this curve has no noise levels of its own and flow levels 1 to 0 are "
                "assumed; give Curve(ratios, sigmas=...) the levels it was calibrated at"
            )

    def _at(self, stream: str, target: Sequence[float]) -> tuple[float, ...]:
        rising, total = self._magnitudes[stream]
        there = np.interp(target, rising, total)
        return tuple(np.exp(np.diff(there, prepend=0.0)).tolist())

    @functools.cached_property
    def _magnitudes(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Per stream the noise levels, rising, and the log magnitude reached there since the run's begin."""
        rising = np.asarray(self.levels)[::-1]
        return {name: (rising, np.cumsum(np.log(values))[::-1]) for name, values in self.ratios.items()}

    @classmethod
    def from_norms(
        cls, norms: Mapping[str, Sequence[ArrayLike]] | Sequence[ArrayLike], *, sigmas: Sequence[float] | None = None
    ) -> Curve:
        """The curve of a calibration run, from the norms of its residuals.

        The ratio is the mean over tokens of ``|r_i| / |r_(i-1)|`` (arXiv 2506.09045, eq. 4), the first one 1.

        Args:
            norms: per stream, one array of per-token L2 norms (any shape, the same at every evaluation) per evaluation.
            sigmas: noise level of each evaluation.

        Raises:
            ArgumentError: shapes that change within a run, or norms that are zero or not finite.
        """
        streams = norms if isinstance(norms, Mapping) else {SINGLE: norms}
        return cls({name: _ratios_of(name, values) for name, values in streams.items()}, sigmas=sigmas)


def _ratios_of(stream: str, norms: Sequence[ArrayLike]) -> list[float]:
    try:
        arrays = [np.asarray(n, dtype=np.float64) for n in norms]
    except (TypeError, ValueError):
        shown = _checks._short(norms)
        raise ArgumentError(f"norms[{stream!r}]={shown} must hold one array of numbers per evaluation") from None
    if not arrays:
        raise ArgumentError(f"norms[{stream!r}] must hold one array per evaluation; run the model once while calibrating")
    for index, values in enumerate(arrays):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ArgumentError(f"norms[{stream!r}][{index}] must be finite and not negative; check the model's dtype")
    ratios = [1.0]
    for index, (before, after) in enumerate(itertools.pairwise(arrays), 1):
        if before.shape != after.shape:
            raise ArgumentError(
                f"norms[{stream!r}][{index}] has shape {after.shape} after {before.shape}; calibrate at one resolution"
            )
        # A token whose residual vanishes says nothing of the growth of the others.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            growth = after / before
        growth = growth[before > 0]
        if growth.size == 0 or not np.isfinite(growth).all():
            raise ArgumentError(f"norms[{stream!r}][{index - 1}] must be finite and not all 0; check the model's dtype")
        ratios.append(float(growth.mean()))
    return ratios


def nearest_indices(length: int, steps: int, *, single: int = -1) -> list[int]:
    """Table entry of each of ``steps`` steps: round(i * (length-1) / (steps-1)), half to even."""
    if steps == 1:
        return [single % length]
    return np.round(np.arange(steps) * ((length - 1) / (steps - 1))).astype(int).tolist()  # type: ignore[no-any-return]
