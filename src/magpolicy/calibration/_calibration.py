"""What full runs of a model teach: inner products of its residuals, and everything that follows from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import ArrayLike

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration import _gram
from magpolicy.calibration._gram import Floats
from magpolicy.policy._curve import Curve


def _matrix(name: str, value: Any, dimensions: int) -> Floats:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(())
    if matrix.ndim != dimensions or 0 in matrix.shape[-2:]:
        raise ArgumentError(f"{name}={_checks._short(value)} must be an array of numbers with {dimensions} axes, none empty")
    if np.isinf(matrix).any():
        raise ArgumentError(f"{name} holds infinity; calibrate in a dtype in which the residual's squares are finite")
    matrix.flags.writeable = False
    return matrix


def _as_gram(value: Any) -> Floats:
    return _matrix("gram", value, 2)


def _as_samples(value: Any) -> Floats | None:
    return None if value is None else _matrix("samples", value, 3)


def _as_ratios(value: Any) -> tuple[float, ...]:
    return _checks.ratios("ratios", value)


def _as_spread(value: Any) -> tuple[float, ...]:
    return _statistics("spread", value)


def _as_cosine(value: Any) -> tuple[float, ...]:
    return _statistics("cosine", value)


def _statistics(name: str, value: Any) -> tuple[float, ...]:
    given = _checks.listed(name, value, "numbers")
    return tuple(_checks.number(f"{name}[{i}]", v, -1e-6, example="0.0") for i, v in enumerate(given))


@frozen(eq=False)
class StreamMoments:
    """Moments of one stream's residuals over a run of N evaluations, within a window of W.

    Args:
        gram: (N, W+1); ``gram[i, k]`` is the mean over samples, tokens and channels of ``r_i * r_(i-k)``, nan where k > i or
            where it is not known.
        ratios: (N,) magnitude ratios, mean over tokens of ``|r_i| / |r_(i-1)|``; the first is 1.
        spread: (N,) standard deviation over tokens of that quotient; the first is 0.
        cosine: (N,) mean over tokens of ``1 - cos(r_i, r_(i-1))``; the first is 0.
        samples: (S, N, W+1) the Gram matrices of the samples that ``gram`` is the mean of; ``None``: there is one sample.

    Raises:
        ArgumentError: shapes that do not fit each other, or values that cannot be.
    """

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
        """Evaluations back to which inner products are known."""
        return int(self.gram.shape[1]) - 1

    @property
    def each(self) -> Floats:
        """(S, N, W+1) the Gram matrix of each sample."""
        return self.gram[None] if self.samples is None else self.samples

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamMoments):
            return NotImplemented
        mine, theirs = ((m.ratios, m.spread, m.cosine) for m in (self, other))
        return mine == theirs and np.array_equal(self.each, other.each, equal_nan=True)


def _as_levels(value: Any) -> tuple[float, ...]:
    return _checks.levels("sigmas", value)


def _as_names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value))


def _as_streams(value: Any) -> dict[str, StreamMoments]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, StreamMoments) for v in value.values()):
        raise ArgumentError(f"streams={_checks._short(value)} must map at least one stream's name to its StreamMoments")
    return {str(name): moments for name, moments in value.items()}


def _as_cross(value: Any) -> dict[tuple[str, str], Floats]:
    return {(str(a), str(b)): _matrix(f"cross[{a!r}, {b!r}]", table, 2) for (a, b), table in value.items()}


@frozen(eq=False, kw_only=True)
class Calibration:
    """What one or several full runs of a model say about reusing its residuals.

    It holds inner products of residuals a few evaluations apart; how far a reused or forecast residual would be off follows
    from them for every choice of computed steps. Usable wherever a preset or a curve is.

    Args:
        sigmas: noise level of each of the N evaluations.
        streams: moments per stream.
        cross: per pair of streams (a, b) an (N, 2W+1) array: ``[i, W+d]`` is the mean of ``r^a_i * r^b_(i+d)``, nan where not
            known. May be empty; with it, plans know how errors of guidance's branches combine.
        provenance: where it is from: model, dtype, scheduler, shift, resolution, guidance, versions, whatever is known.
        name: to list it by, and ask for it.
        aliases: more names, such as the repo id of the model, by which a host finds it.

    Raises:
        ArgumentError: lengths that differ.
    """

    sigmas: tuple[float, ...] = field(converter=_as_levels)
    streams: Mapping[str, StreamMoments] = field(converter=_as_streams, repr=False)
    cross: Mapping[tuple[str, str], Floats] = field(factory=dict, converter=_as_cross, repr=False)
    provenance: Mapping[str, Any] = field(factory=dict, converter=dict)
    name: str = field(default="", converter=str)
    aliases: tuple[str, ...] = field(default=(), converter=_as_names)

    def __attrs_post_init__(self) -> None:
        tables: dict[str, Any] = {f"streams[{name!r}]": m.gram for name, m in self.streams.items()}
        tables |= {f"cross[{a!r}, {b!r}]": table for (a, b), table in self.cross.items()}
        for name, table in tables.items():
            if len(table) != len(self.sigmas):
                raise ArgumentError(f"{name} has {len(table)} evaluations, sigmas has {len(self.sigmas)}; give one level each")
        for pair, table in self.cross.items():
            if not set(pair) <= set(self.streams) or table.shape[1] % 2 == 0:
                raise ArgumentError(f"cross[{pair[0]!r}, {pair[1]!r}] must be of two streams there are, with 2W+1 columns")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Calibration):
            return NotImplemented
        return (
            self.sigmas == other.sigmas
            and dict(self.streams) == dict(other.streams)
            and set(self.cross) == set(other.cross)
            and all(np.array_equal(table, other.cross[pair], equal_nan=True) for pair, table in self.cross.items())
        )

    @property
    def steps(self) -> int:
        """Evaluations of the calibrated run."""
        return len(self.sigmas)

    @property
    def window(self) -> int:
        """Evaluations back to which inner products are known, in every stream."""
        return min(moments.window for moments in self.streams.values())

    @property
    def merged(self) -> int:
        """Number of samples in it."""
        return min(len(moments.each) for moments in self.streams.values())

    @functools.cached_property
    def curve(self) -> Curve:
        """The magnitude ratios, as the published rule reads them."""
        kept = _falling(self.sigmas)
        sigmas = [self.sigmas[i] for i in kept]
        return Curve({name: _ratios_at(moments.ratios, kept) for name, moments in self.streams.items()}, sigmas=sigmas)

    def of(self, stream: str) -> StreamMoments:
        """Moments of ``stream``; a stream that was not calibrated reads the first one's."""
        return self.streams.get(stream) or next(iter(self.streams.values()))

    def hold_error(self, stream: str, j: int, i: int) -> float:
        """|r_i - r_j| / |r_i|: the relative error of reusing the residual of evaluation j at i; nan where not known."""
        return self.error(stream, j, j, i, 0.0)

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        """The c for which r_j + c (r_j - r_p) is closest to r_i; 0 where forecasting does not pay or is not known.

        r_p and r_j are the residuals computed last, in that order. With c = a (s_i - s_j)/(s_j - s_p), a=1 is the straight line
        over noise level s.
        """
        moments = self.of(stream)
        return float(_gram.calibrated(moments.gram, moments.samples, p, j, i))

    def forecast_error(self, stream: str, p: int, j: int, i: int) -> float:
        """Relative error of that forecast of r_i, never above the hold error; nan where not known."""
        return self.error(stream, p, j, i, self.coefficient(stream, p, j, i))

    def error(self, stream: str, p: int, j: int, i: int, c: float, *, worst: bool = False) -> float:
        """Relative error |r_i - r_j - c (r_j - r_p)| / |r_i| of any coefficient; nan where not known.

        Over all samples together, or with ``worst`` in the sample where it is largest.
        """
        moments = self.of(stream)
        grams = moments.each if worst else moments.gram[None]
        found = []
        for gram in grams:
            size = _gram.inner(gram, i, i)
            with np.errstate(divide="ignore", invalid="ignore"):
                found.append(float(np.sqrt(_gram.remaining(*_gram.differences(gram, p, j, i), c) / size)))
        return max(found)

    def resample(self, *, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Calibration:
        """The calibration of another run of the same model: any number of steps, any schedule, any order of evaluations.

        The residual is taken for a smooth path over noise level and read at the run's levels (interpolation over the share of
        the run, of the fifth order where the window spans the run, else of the third); inner products follow. Levels outside
        the calibrated range are not known (nan): a plan computes there.

        Args:
            steps: number of steps, on this calibration's own schedule; as calibrated if neither is given.
            sigmas: or the noise levels of the evaluations, in the order they are made (a final 0 is dropped).

        Raises:
            ArgumentError: ``steps`` and ``sigmas`` contradict each other.
        """
        from magpolicy.calibration._resample import resample

        return resample(self, steps, sigmas)

    def part(self, first: int, stop: int) -> Calibration:
        """The calibration of the evaluations ``first`` to ``stop`` (exclusive) alone, as if the run began there."""

        def cut(gram: Floats) -> Floats:
            rows = gram[..., first:stop, :].copy()
            before = np.arange(rows.shape[-2])[:, None] < np.arange(rows.shape[-1])[None, :]
            rows[..., before] = np.nan
            return rows

        def cut_cross(table: Floats) -> Floats:
            there = np.arange(first, stop)[:, None] + np.arange(table.shape[1])[None, :] - table.shape[1] // 2
            return np.where((there >= first) & (there < stop), table[first:stop], np.nan)

        streams = {
            name: StreamMoments(
                cut(m.gram), m.ratios[first:stop], m.spread[first:stop], m.cosine[first:stop],
                None if m.samples is None else cut(m.samples),
            )
            for name, m in self.streams.items()
        }  # fmt: skip
        cross = {pair: cut_cross(table) for pair, table in self.cross.items()}
        return evolve(self, sigmas=self.sigmas[first:stop], streams=streams, cross=cross)

    @classmethod
    def from_residuals(
        cls,
        residuals: Mapping[str, Sequence[ArrayLike]] | Sequence[ArrayLike],
        *,
        sigmas: Sequence[float] | None = None,
        window: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        name: str = "",
        aliases: Sequence[str] = (),
    ) -> Calibration:
        """The calibration of a run whose residuals are at hand; adapters measure theirs as the run goes and hold few.

        Args:
            residuals: per stream one array (tokens, channels), or (samples, tokens, channels), an evaluation.
            sigmas: their noise levels; evenly spaced flow levels 1, 1-1/n, ... by default.
            window: evaluations back to which inner products are taken; all by default.
            provenance: as :attr:`provenance`.
            name: as :attr:`name`.
            aliases: as :attr:`aliases`.

        Raises:
            ArgumentError: shapes that change within a run, or values that are not finite.
        """
        from magpolicy.calibration._moments import from_residuals

        return from_residuals(residuals, sigmas, window, provenance=provenance or {}, name=name, aliases=aliases)

    @classmethod
    def merge(cls, calibrations: Iterable[Calibration]) -> Calibration:
        """One calibration of several samples: inner products are averaged, and each sample's kept for the worst case.

        The order does not matter, nor whether samples are merged one by one. Others than the first are resampled to its levels
        where theirs differ (then the first matters).

        Raises:
            ArgumentError: nothing to merge, or other streams.
        """
        from magpolicy.calibration._merge import merge

        return merge(_checks.listed("calibrations", calibrations, "Calibrations"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one ``.json`` or ``.safetensors`` file, which :func:`load_calibration` and :func:`preset` read.

        The file appears whole or not at all.

        Raises:
            PresetError: another ending, or provenance that JSON cannot hold.
            MissingExtraError: ``.safetensors`` needs the ``files`` extra.
        """
        from magpolicy.calibration._file import save_calibration

        save_calibration(self, path)


def _falling(levels: Sequence[float]) -> list[int]:
    from magpolicy.calibration._resample import falling

    return falling(levels)


def _ratios_at(ratios: Sequence[float], kept: Sequence[int]) -> list[float]:
    """Growth between the kept evaluations: the product of the ratios since the one before."""
    starts = [0, *(i + 1 for i in kept)]
    return [float(np.prod(ratios[a : b + 1])) for a, b in zip(starts, kept, strict=False)]
