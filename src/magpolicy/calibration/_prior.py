"""The general prior: what a model that nobody measured is expected to do, as an ordinary calibration.

Residual trajectories of flow models are nearly alike over the noise level: the residual turns quickly where a run begins,
slowly in the middle and a little quicker again at its end. So a Gram matrix over noise level can stand in for the one that a
calibration measures. With L(s) how far the residual has turned between the highest noise level and s, and k a smooth kernel,

    <r(s), r(s')> = n(s) n(s') k(|L(s) - L(s')|)

is what the prior says of one stream, and ``LIKENESS`` times that of two streams of one run. n(s) is the norm: what a model's
published ratios say of it, and constant where nothing is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._likeness import LIKENESS, banded_cross
from magpolicy.calibration._moments import StreamMoments
from magpolicy.policy._curve import SINGLE, Curve
from magpolicy.policy._flow import flow_sigmas

PROVENANCE = "the general prior"
CONSTANT = "constant"
"""What the provenance of a calibration that the prior made says of norms which nothing is known of."""
_MOST = 1e20
"""Of a norm, and one over it the least: squares of residuals stay what a calibration may hold."""
PRIOR_SHARE = 0.03
"""The :attr:`magpolicy.Calibration.prior_share` of what runs measure. In the lab it is worth up to 9 dB, and loses none."""


@frozen
class Directions:
    """How the residual's direction changes over noise level.

    The defaults are fitted to the three models of the lab (benchmarks/quality/fit_prior.py), but for ``start``, which was
    chosen by comparing plans on them.
    """

    middle: float = 2.5
    """Rate everywhere, per unit of noise level."""
    late: float = 14.0
    """Rate added at noise level 0."""
    late_range: float = 0.065
    """Noise levels within which that fades."""
    scale: float = 2.0
    """Distance turned within which the kernel (Matern, 5/2) falls."""
    start: float = 0.05
    """Share of the residual at noise level 1 that is of the start alone, one direction that fades."""
    start_range: float = 0.023
    """Noise levels within which it fades."""
    rough: float = 3e-4
    """Share of the residual that does not move smoothly."""
    rough_scale: float = 0.05
    """Distance turned within which that share is another one."""

    def turned(self, levels: Floats) -> Floats:
        """(N,) how far the residual has turned between noise level 1 and each of the levels (N,)."""
        end = self.late * self.late_range * (np.exp(-levels / self.late_range) - np.exp(-1 / self.late_range))
        found: Floats = self.middle * (1 - levels) + end
        return found

    def cosines(self, levels: Floats) -> Floats:
        """(N, N) inner products of unit residuals at the levels (N,)."""
        turned = self.turned(levels)
        far = np.abs(turned[:, None] - turned[None, :])
        d = np.sqrt(5.0) * far / self.scale
        smooth = (1 + d + d * d / 3) * np.exp(-d)
        begin = np.sqrt(self.start) * np.exp(-(1 - levels) / self.start_range)
        whole = smooth + self.rough * np.exp(-far / self.rough_scale) + begin[:, None] * begin[None, :]
        size = np.sqrt(1 + self.rough + begin * begin)
        found: Floats = whole / (size[:, None] * size[None, :])
        return found

    def expected(self, levels: Sequence[float], expert_step: int | None = None) -> Floats:
        """(N, N) the same at a run's noise levels (N,), of a flow model or not; 0 between two experts."""
        cosines = self.cosines(_flow_levels(np.asarray(levels)))
        return cosines if expert_step is None else apart(cosines, (expert_step,))


DIRECTIONS = Directions()


def prior_calibration(
    curve: Curve | None,
    *,
    levels: Sequence[float],
    streams: Sequence[str] | None = None,
    directions: Directions = DIRECTIONS,
    expert_step: int | None = None,
) -> Calibration:
    """The calibration that the prior expects of a run.

    Args:
        curve: magnitude ratios of the model, which say how the residual's norm changes; ``None``: it is taken for constant.
            Ratios without noise levels are read by share of the run.
        levels: (N,) noise levels of the run's evaluations, in the order they are made (a final 0 is dropped). Levels above 1
            are those of a model that is no flow model, sigma; the flow level of the same ratio of noise to picture is
            sigma / (1 + sigma).
        streams: names of the streams; by default the curve's, else one.
        directions: how the residual turns.
        expert_step: the evaluation at which a second expert takes over: what its residuals have in common with those of the
            first is not known, so nothing is expected.

    Returns:
        Inner products are known over the whole run and between streams. Levels outside of what ``curve`` was measured at are
        not known (nan).

    Raises:
        ArgumentError: no levels, or no streams.
    """
    sigmas = _checks.levels("levels", levels)
    names = tuple(streams) if streams is not None else curve.streams if curve is not None else (SINGLE,)
    if not names:
        raise ArgumentError("streams=() must name at least one stream; try ('cond', 'uncond')")
    places = sigmas if curve is None or not curve.assumed else _shares(sigmas)
    run = None if curve is None else curve.resample(sigmas=places)
    cosines = directions.expected(sigmas, expert_step)
    ratios = {name: (1.0,) * len(sigmas) if run is None else run.of(name) for name in names}
    inside = np.ones(len(sigmas), dtype=bool) if curve is None else np.asarray(curve.covers(places))
    norms = {name: np.where(inside, _norms(ratios[name]), np.nan) for name in names}
    turned = np.maximum(0.0, 1 - np.append(1.0, np.diagonal(cosines, -1)))
    provenance: dict[str, Any] = {"from": PROVENANCE, "norms": CONSTANT if curve is None else "published ratios"}
    return Calibration(
        sigmas=sigmas,
        streams={
            name: StreamMoments(_banded(norms[name], cosines), ratios[name], (0.0,) * len(sigmas), turned.tolist())
            for name in names
        },
        cross={(a, b): _crossed(norms[a], norms[b], LIKENESS * cosines) for a, b in itertools.combinations(names, 2)},
        provenance=provenance,
    )


def apart(cosines: Floats, expert_steps: Sequence[int]) -> Floats:
    """(N, N) the cosines with 0 between evaluations of different experts, which take over at ``expert_steps``."""
    expert = np.searchsorted(np.sort(np.asarray(expert_steps)), np.arange(len(cosines)), side="right")
    return np.where(expert[:, None] == expert[None, :], cosines, 0.0)


def _norms(ratios: Sequence[float]) -> Floats:
    with np.errstate(over="ignore", under="ignore"):
        found: Floats = np.clip(np.cumprod(ratios), 1 / _MOST, _MOST)
    return found


def with_prior(measured: Calibration, *, directions: Directions = DIRECTIONS, expert_step: int | None = None) -> Calibration:
    """A calibration with its :attr:`magpolicy.Calibration.prior_share` of the prior mixed into its inner products.

    A few samples' inner products say too much: where two streams, or two steps, are nearly alike, a plan finds coefficients
    that cancel what they differ by in these samples alone, and other samples differ by something else. A few percent of what
    the prior expects are enough to let such coefficients not pay.

    Norms stay as they were measured. ``prior_share`` of the result is 0. ``expert_step`` is as in :func:`prior_calibration`.
    """
    share = measured.prior_share
    if not share:
        return measured
    cosines = directions.expected(measured.sigmas, expert_step)
    norms = {name: np.sqrt(moments.gram[:, 0]) for name, moments in measured.streams.items()}

    def mixed(table: Floats, expected: Floats) -> Floats:
        return (1 - share) * table + share * expected

    streams = {}
    for name, moments in measured.streams.items():
        expected = _as_wide(_banded(norms[name], cosines), 0, moments.gram.shape[1])
        samples = None if moments.samples is None else np.stack([mixed(one, expected) for one in moments.samples])
        streams[name] = evolve(moments, gram=mixed(moments.gram, expected), samples=samples)
    cross = {}
    for (a, b), table in measured.cross.items():
        margin = len(table) - 1 - table.shape[1] // 2
        cross[a, b] = mixed(table, _as_wide(_crossed(norms[a], norms[b], LIKENESS * cosines), margin, table.shape[1]))
    return evolve(measured, streams=streams, cross=cross, prior_share=0.0)


def _shares(levels: Sequence[float]) -> tuple[float, ...]:
    """The flow levels of an evenly spaced run in place of each of the levels: how much of the run is still to come."""
    place = {level: index for index, level in enumerate(sorted(set(levels), reverse=True))}
    return tuple([1 - place[level] / len(place) for level in levels])


def is_measured(calibration: Calibration | None) -> bool:
    """Whether somebody's measurements are behind a plan from it; else the general prior alone is."""
    return calibration is not None and calibration.provenance.get("from") != PROVENANCE


def flow_levels(steps: int, sigmas: Sequence[float] | None) -> tuple[float, ...]:
    """(N,) the noise levels of a run between 0 and 1; even ones where only their number is known."""
    return flow_sigmas(steps) if sigmas is None else tuple(_flow_levels(np.asarray(sigmas)).tolist())


def _flow_levels(levels: Floats) -> Floats:
    """Noise levels between 0 and 1."""
    return levels / (1 + levels) if levels.max() > 1 + 1e-6 else np.minimum(levels, 1.0)


def _banded(norms: Floats, cosines: Floats) -> Floats:
    """(N, N) the Gram matrix, ``[i, k]`` being of i and i-k; nan where there is no such evaluation."""
    count = len(norms)
    whole = norms[:, None] * norms[None, :] * cosines
    i, k = np.arange(count)[:, None], np.arange(count)[None, :]
    found: Floats = np.where(i >= k, whole[i, np.maximum(i - k, 0)], np.nan)
    return found


def _as_wide(table: Floats, first: int, width: int) -> Floats:
    """``width`` columns of a table from column ``first`` on; nan where it has none, as of a run shorter than the window."""
    places = first + np.arange(width)
    known = (places >= 0) & (places < table.shape[1])
    found: Floats = np.where(known, table[:, np.where(known, places, 0)], np.nan)
    return found


def _crossed(first: Floats, second: Floats, cosines: Floats) -> Floats:
    """(N, 2N-1) inner products between two streams of these norms."""
    return banded_cross(first[:, None] * second[None, :] * cosines)
