"""A calibration of a whole run from what a part of its evaluations computed.

A run that skips knows the residuals of its computed evaluations alone. The general prior says how the direction of a residual
changes over noise level; given the residuals r_S that are known, each other one is expected to be a weighted sum of them and a
rest that is at right angles to all:

    r_i = n_i (w_i r_S / n_S + rest_i),   w = K_iS K_SS^-1,   <rest_i, rest_j> = K_ij - w_i K_Sj

with K the prior's inner products of unit residuals and n the norms, those between known ones interpolated. So inner products of
known residuals stay what was measured, the others follow from these, and what is not known counts as an error of the forecast.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._gram import Floats, cross_inner, inner
from magpolicy.calibration._likeness import LIKENESS
from magpolicy.calibration._moments import StreamMoments
from magpolicy.calibration._prior import DIRECTIONS, Directions, _banded, _crossed, _flow_levels, apart

_JITTER = 1e-9
"""Added to the diagonal: two evaluations of a second-order sampler may be at one level."""


def _as_places(value: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    return tuple((str(stream), int(step)) for stream, step in value)


@frozen(eq=False)
class MeasuredPart:
    """Inner products of the residuals that a run computed.

    Attributes:
        places: (M) the stream and the step of each residual.
        gram: (M, M) their inner products, mean over what was looked at.

    Raises:
        ArgumentError: there is none, one of them is not finite, or a residual is zero.
    """

    __module__ = "magpolicy.adapter"

    places: tuple[tuple[str, int], ...] = field(converter=_as_places)
    gram: Floats = field(converter=np.asarray, repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.places or self.gram.shape != (len(self.places),) * 2:
            raise ArgumentError(f"gram has shape {self.gram.shape} for {len(self.places)} residuals; give one row each")
        if not np.isfinite(self.gram).all() or (np.diagonal(self.gram) <= 0).any():
            raise ArgumentError("gram holds a residual that is zero or not finite; check the model's dtype")

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams, in the order they came."""
        return tuple(dict.fromkeys(name for name, _ in self.places))


def completed(
    measured: MeasuredPart,
    levels: Sequence[float],
    *,
    expert_steps: Sequence[int] = (),
    provenance: Mapping[str, Any] | None = None,
    directions: Directions = DIRECTIONS,
) -> Calibration:
    """The calibration of a run, from what was measured of it.

    Args:
        measured: what the run computed.
        levels: (N,) the noise level of each of its evaluations, in the order they are made.
        expert_steps: evaluations at which another model takes over: nothing is inferred across them.
        provenance: as :attr:`magpolicy.Calibration.provenance`.
        directions: how residuals turn, as the prior has it.

    Returns:
        Inner products are known of all evaluations, and between all streams; those that were computed have the measured ones.

    Raises:
        ArgumentError: no levels, or a residual of a step that the run does not have.
    """
    sigmas = _checks.levels("levels", levels)
    if any(not 0 <= step < len(sigmas) for _, step in measured.places):
        raise ArgumentError(f"levels has {len(sigmas)} values, a residual is of step {max(s for _, s in measured.places)}")
    whole = _completed(measured, sigmas, expert_steps, directions)
    return _calibration(measured.streams, sigmas, whole, provenance or {})


def read_at(calibration: Calibration, levels: Sequence[float], *, directions: Directions = DIRECTIONS) -> Calibration:
    """A calibration of the whole run of one schedule, read at the noise levels (N,) of another.

    Unlike :meth:`magpolicy.Calibration.resample` it knows something at every level: far from those that were measured, what the
    prior expects.
    """
    if tuple(levels) == calibration.sigmas:
        return calibration
    names, known = list(calibration.streams), calibration.steps
    measured = MeasuredPart([(name, step) for name in names for step in range(known)], _whole_gram(calibration))
    sigmas = _checks.levels("levels", levels)
    whole = _completed(measured, (*calibration.sigmas, *sigmas), (), directions)[:, known:, :, known:]
    read = _calibration(names, sigmas, whole, calibration.provenance)
    return evolve(read, name=calibration.name, prior_share=calibration.prior_share)


def _completed(
    measured: MeasuredPart, sigmas: tuple[float, ...], expert_steps: Sequence[int], directions: Directions
) -> Floats:
    """(S, N, S, N) inner products of all residuals, of every stream and evaluation with every other."""
    names, count = measured.streams, len(sigmas)
    rows = np.array([names.index(name) * count + step for name, step in measured.places])
    norms = np.concatenate([_norms(measured, name, np.asarray(sigmas)) for name in names])
    expected = _expected(directions.cosines(_flow_levels(np.asarray(sigmas))), len(names), expert_steps)
    whole = norms[:, None] * _unit_gram(measured, expected, rows) * norms[None, :]
    whole[np.ix_(rows, rows)] = measured.gram
    return np.asarray(whole.reshape(len(names), count, len(names), count), dtype=np.float64)


def _calibration(names: Sequence[str], sigmas: tuple[float, ...], whole: Floats, provenance: Mapping[str, Any]) -> Calibration:
    """The calibration of inner products (S, N, S, N)."""
    ones, pairs = np.ones(len(sigmas)), itertools.combinations(range(len(names)), 2)
    return Calibration(
        sigmas=sigmas,
        streams={name: _moments(whole[a, :, a, :]) for a, name in enumerate(names)},
        cross={(names[a], names[b]): _crossed(ones, ones, whole[a, :, b, :]) for a, b in pairs},
        provenance=dict(provenance),
    )


def _whole_gram(calibration: Calibration) -> Floats:
    """(S N, S N) inner products of all residuals of a calibration, stream by stream."""
    i, j = np.indices((calibration.steps, calibration.steps))
    blocks = {}
    for name, moments in calibration.streams.items():
        blocks[name, name] = inner(moments.gram, i, j)
    for (a, b), table in calibration.cross.items():
        blocks[a, b] = cross_inner(table, i, j)
        blocks[b, a] = blocks[a, b].T
    return np.block([[blocks[a, b] for b in calibration.streams] for a in calibration.streams])


def _expected(cosines: Floats, streams: int, expert_steps: Sequence[int]) -> Floats:
    """What the prior expects of unit residuals, of every stream and evaluation with every other."""
    alike = np.where(np.eye(streams, dtype=bool), 1.0, LIKENESS)
    return np.asarray(np.kron(alike, apart(cosines, expert_steps)), dtype=np.float64)


def _unit_gram(measured: MeasuredPart, prior: Floats, rows: Any) -> Floats:
    size = np.sqrt(np.diagonal(measured.gram))
    known = prior[np.ix_(rows, rows)] + _JITTER * np.eye(len(rows))
    weights = np.linalg.solve(known, prior[rows]).T
    rest = prior - weights @ prior[rows]
    found: Floats = weights @ (measured.gram / (size[:, None] * size[None, :])) @ weights.T + rest
    return found


def _norms(measured: MeasuredPart, name: str, levels: Floats) -> Floats:
    """(N,) the norms of a stream's residuals, between those known evenly in the logarithm."""
    known = sorted((levels[step], place) for place, (stream, step) in enumerate(measured.places) if stream == name)
    squares = [measured.gram[place, place] for _, place in known]
    found: Floats = np.exp(0.5 * np.interp(levels, [level for level, _ in known], np.log(squares)))
    return found


def _moments(gram: Floats) -> StreamMoments:
    """Moments from inner products of all evaluations (N, N). Ratios and cosines are those of all tokens together."""
    norms = np.sqrt(np.diagonal(gram))
    cosines = np.diagonal(gram, -1) / (norms[1:] * norms[:-1])
    return StreamMoments(
        gram=_banded(np.ones(len(gram)), gram),
        ratios=(1.0, *(norms[1:] / norms[:-1]).tolist()),
        spread=(0.0,) * len(gram),
        cosine=(0.0, *np.maximum(1 - cosines, 0.0).tolist()),
    )
