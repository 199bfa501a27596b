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
from magpolicy.calibration import _format, _gram, _merge, _resample
from magpolicy.calibration._from_residuals import moments_of
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._moments import StreamMoments, matrix
from magpolicy.policy._curve import Curve
from magpolicy.policy._flow import flow_sigmas


def _as_levels(value: Any) -> tuple[float, ...]:
    return _checks.levels("sigmas", value)


def _as_names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value))


def _as_streams(value: Any) -> dict[str, StreamMoments]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, StreamMoments) for v in value.values()):
        raise ArgumentError(f"streams={_checks._short(value)} must map at least one stream's name to its StreamMoments")
    return {str(name): moments for name, moments in value.items()}


def _as_cross(value: Any) -> dict[tuple[str, str], Floats]:
    return {(str(a), str(b)): matrix(f"cross[{a!r}, {b!r}]", table, 2) for (a, b), table in value.items()}


@frozen(eq=False, kw_only=True)
class Calibration:
    """Inner products of a model's residuals, measured in one or several full runs.

    They give the error of each reuse and each forecast, for every choice of computed steps. You can pass a calibration wherever
    you can pass a preset or a curve.

    Attributes:
        sigmas: noise level of each of the N evaluations.
        streams: moments per stream.
        cross: per pair of streams (a, b) an (N, 2W+1) array: ``[i, W+d]`` is the mean of ``r^a_i * r^b_(i+d)``, nan where not
            known. May be empty; with it, plans know how errors of guidance's branches combine.
        provenance: how it was made: model, dtype, scheduler, shift, resolution, guidance, versions, as far as they can be told.
        name: the name that it is listed under, and that :func:`magpolicy.preset` takes.
        aliases: more names, such as the repo id of the model, which host adapters look for.
        prior_share: share of the general prior that plans mix into the inner products, 0 to 1. Residuals of a few samples fit
            themselves better than the next picture; adapters give what they measure a share of 0.03, and products that are
            known exactly need none.

    Raises:
        ArgumentError: lengths that differ, or a share out of range.
    """

    __module__ = "magpolicy"

    sigmas: tuple[float, ...] = field(converter=_as_levels)
    streams: Mapping[str, StreamMoments] = field(converter=_as_streams, repr=False)
    cross: Mapping[tuple[str, str], Floats] = field(factory=dict, converter=_as_cross, repr=False)
    provenance: Mapping[str, Any] = field(factory=dict, converter=dict)
    name: str = field(default="", converter=str)
    aliases: tuple[str, ...] = field(default=(), converter=_as_names)
    prior_share: float = 0.0

    def __attrs_post_init__(self) -> None:
        _checks.number("prior_share", self.prior_share, 0, 1, example="0.5")
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
            and self.prior_share == other.prior_share
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
        """How many evaluations back inner products reach, in every stream."""
        return min(moments.window for moments in self.streams.values())

    @property
    def merged(self) -> int:
        """Number of samples in it."""
        return min(len(moments.each) for moments in self.streams.values())

    @functools.cached_property
    def curve(self) -> Curve:
        """The magnitude ratios, as the published rule reads them."""
        kept = _resample.falling(self.sigmas)
        sigmas = [self.sigmas[i] for i in kept]
        return Curve({name: _ratios_at(moments.ratios, kept) for name, moments in self.streams.items()}, sigmas=sigmas)

    def of(self, stream: str) -> StreamMoments:
        """Moments of ``stream``; those of the first stream if ``stream`` was not calibrated."""
        return self.streams.get(stream) or next(iter(self.streams.values()))

    def hold_error(self, stream: str, j: int, i: int) -> float:
        """|r_i - r_j| / |r_i|: the relative error of reusing the residual of evaluation j at i; nan where not known."""
        return self.error(stream, j, j, i, 0.0)

    def coefficient(self, stream: str, p: int, j: int, i: int) -> float:
        """The c for which r_j + c (r_j - r_p) is closest to r_i; 0 if a forecast does not pay, or cannot be computed.

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

        The residual is interpolated between the calibrated noise levels, over the share of the run: with the fifth order if the
        calibration spans the whole run, else with the third. Inner products follow from that. At levels outside the calibrated
        range they are nan, and a plan computes.

        Args:
            steps: number of steps, on this calibration's own schedule; as calibrated if neither is given.
            sigmas: or the noise levels of the evaluations, in the order they are made (a final 0 is dropped).

        Raises:
            ArgumentError: ``steps`` and ``sigmas`` contradict each other.
        """
        target = self._levels_of(steps, sigmas)
        if target == self.sigmas:
            return self
        curve = self.curve.resample(sigmas=target)
        streams, cross = _resample.resample(self.sigmas, self.streams, self.cross, target, curve)
        return evolve(self, sigmas=target, streams=streams, cross=cross)

    def _levels_of(self, steps: int | None, sigmas: Sequence[float] | None) -> tuple[float, ...]:
        """The noise levels of another run."""
        if (given := _checks.run_levels(steps, sigmas)) is not None:
            return given
        if steps is None or steps == self.steps:
            return self.sigmas
        return self.curve.levels_for(_checks.steps(steps, example=str(self.steps)))

    def part(self, first: int, stop: int) -> Calibration:
        """The calibration of the evaluations ``first`` to ``stop`` (exclusive) alone, as if the run began there."""

        def cut(table: Floats) -> Floats:
            there = np.arange(first, stop)[:, None] + np.arange(table.shape[1])[None, :] - table.shape[1] // 2
            return np.where((there >= first) & (there < stop), table[first:stop], np.nan)

        streams = {name: moments.part(first, stop) for name, moments in self.streams.items()}
        cross = {pair: cut(table) for pair, table in self.cross.items()}
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
        """The calibration of a run, from all of its residuals. Adapters measure theirs during a run, and hold few residuals.

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
        streams, cross = moments_of(residuals, window)
        count = len(next(iter(streams.values())).ratios)
        levels = flow_sigmas(count) if sigmas is None else tuple(sigmas)
        return cls(sigmas=levels, streams=streams, cross=cross, provenance=provenance or {}, name=name, aliases=aliases)

    @classmethod
    def merge(cls, calibrations: Iterable[Calibration]) -> Calibration:
        """One calibration of several samples, or of streams that were measured one by one.

        Of samples it averages inner products, and keeps those of each for its largest error. The order does not matter, nor
        whether samples are merged one by one. If noise levels differ, all are resampled to those of the first one, and then
        it matters which is first.

        Calibrations that have no stream in common become one of all their streams: those of the branches of guidance, where
        each was evaluated by itself (CFG parallelism). Nobody has seen their residuals together then, so 0.95 of what is within
        the streams is assumed between them, which the provenance says. Where both ranks are there,
        :func:`magpolicy_torch.joint_calibration` measures it instead.

        Raises:
            ArgumentError: nothing to merge, calibrations of different models, streams that some have in common and some have
                not, or branches at different noise levels.
        """
        given = _checks.listed("calibrations", calibrations, "Calibrations")
        if not given or not all(isinstance(one, cls) for one in given):
            raise ArgumentError(f"calibrations={_checks._short(given)} must hold at least one Calibration")
        return _merge.merge(given)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one ``.json`` or ``.safetensors`` file, which :func:`load_calibration` and :func:`preset` read.

        If writing fails, no part of the file is left.

        Raises:
            PresetError: another ending, or provenance that JSON cannot hold.
            MissingExtraError: ``.safetensors`` needs the ``files`` extra.
        """
        _format.save(self, path)


def _ratios_at(ratios: Sequence[float], kept: Sequence[int]) -> list[float]:
    """Growth between the kept evaluations: the product of the ratios since the one before."""
    starts = [0, *(i + 1 for i in kept)]
    return [float(np.prod(ratios[a : b + 1])) for a, b in zip(starts, kept, strict=False)]
