"""Several calibrations in one: samples of the same streams, or branches of guidance that were measured one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve

from magpolicy._errors import ArgumentError
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._likeness import ASSUMED, LIKENESS, assumed_cross
from magpolicy.calibration._moments import StreamMoments

if TYPE_CHECKING:
    from magpolicy.calibration._calibration import Calibration


def merge(calibrations: Sequence[Calibration]) -> Calibration:
    """See :meth:`magpolicy.Calibration.merge`."""
    first = calibrations[0]
    for place, other in enumerate(calibrations):
        _check_models(first, other, place)
    groups: dict[frozenset[str], list[Calibration]] = {}
    for one in calibrations:
        groups.setdefault(frozenset(one.streams), []).append(one)
    if len(groups) > 1:
        _check_branches(calibrations, list(groups))
    branches = [_alike(_at_one_run(group)) for group in groups.values()]
    return branches[0] if len(branches) == 1 else _joint(branches)


def _check_models(first: Calibration, other: Calibration, place: int) -> None:
    mine, theirs = ({**dict(c.provenance.get("identity") or {}), "model": c.provenance.get("model")} for c in (first, other))
    for key in ("model", "config", "repo"):
        if mine.get(key) and theirs.get(key) and mine[key] != theirs[key]:
            raise ArgumentError(
                f"calibrations[{place}] is of another model ({key} {theirs[key]}) than calibrations[0] ({mine[key]}); "
                "merge calibrations of one model"
            )


def _check_branches(calibrations: Sequence[Calibration], groups: Sequence[frozenset[str]]) -> None:
    """Complain unless each stream is in one group alone, and all are of one run."""
    for some, more in itertools.combinations(groups, 2):
        if some & more:
            raise ArgumentError(
                f"calibrations have streams {sorted(some)} and {sorted(more)}; merge those of equal streams together, "
                "or those that have no stream in common"
            )
    first = calibrations[0]
    for place, other in enumerate(calibrations):
        if other.sigmas != first.sigmas:
            raise ArgumentError(
                f"calibrations[{place}] of {sorted(other.streams)} has other noise levels ({_levels(other)}) than "
                f"calibrations[0] of {sorted(first.streams)} ({_levels(first)}); calibrate every branch in the same run, or "
                "resample(sigmas=...) it first"
            )


def _levels(calibration: Calibration) -> str:
    return f"{calibration.steps} from {calibration.sigmas[0]:g} to {calibration.sigmas[-1]:g}"


def _at_one_run(group: Sequence[Calibration]) -> list[Calibration]:
    levels = group[0].sigmas
    return [one if one.sigmas == levels else one.resample(sigmas=levels) for one in group]


def _alike(alike: Sequence[Calibration]) -> Calibration:
    """Samples of the same streams, at the same noise levels."""
    first = alike[0]
    counts = [c.merged for c in alike]
    pairs = set(first.cross).intersection(*(c.cross for c in alike))
    return evolve(
        first,
        streams={name: _streams([c.streams[name] for c in alike]) for name in first.streams},
        cross={pair: _mean([c.cross[pair] for c in alike], counts, _middle) for pair in sorted(pairs)},
        provenance=_provenance(alike) | {"samples": sum(counts)},
        **_names(alike),
    )


def _joint(branches: Sequence[Calibration]) -> Calibration:
    """Several streams, each group of them measured without the others."""
    streams = {name: moments for one in branches for name, moments in one.streams.items()}
    cross = {pair: table for one in branches for pair, table in one.cross.items()}
    assumed = False
    for one, other in itertools.combinations(branches, 2):
        for a, b in itertools.product(one.streams, other.streams):
            if (table := assumed_cross(streams[a], streams[b])) is not None:
                cross[a, b], assumed = table, True
    about = {**_provenance(branches), "samples": min(one.merged for one in branches)}
    if assumed:
        about[ASSUMED] = f"assumed: {LIKENESS} of those within"
    return evolve(branches[0], streams=streams, cross=cross, provenance=about, **_names(branches))


def _names(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    first = calibrations[0]
    return {
        "name": first.name if all(c.name == first.name for c in calibrations) else "",
        "aliases": sorted(set().union(*(c.aliases for c in calibrations))),
        "prior_share": max(c.prior_share for c in calibrations),
    }


def _streams(moments: Sequence[StreamMoments]) -> StreamMoments:
    width = min(m.window for m in moments) + 1
    # Sorted, and summed exactly: no trace of the order is left.
    samples = sorted((sample[:, :width] for m in moments for sample in m.each), key=lambda s: s.tobytes())
    counts = [len(m.each) for m in moments]
    return StreamMoments(
        gram=_mean(samples, [1] * len(samples), lambda table, _: table),
        ratios=_average([m.ratios for m in moments], counts),
        spread=_average([m.spread for m in moments], counts),
        cosine=_average([m.cosine for m in moments], counts),
        samples=np.stack(samples),
    )


def _mean(tables: Sequence[Floats], counts: Sequence[int], cut: Callable[[Floats, int], Floats]) -> Floats:
    width = min(table.shape[1] for table in tables)
    stacked = np.stack([cut(table, width) for table in tables])
    flat = stacked.reshape(len(tables), -1)
    sums = [_average([[value] for value in column], counts)[0] for column in flat.T]
    return np.asarray(sums).reshape(stacked.shape[1:])


def _middle(table: Floats, width: int) -> Floats:
    margin = (table.shape[1] - width) // 2
    return table[:, margin : margin + width]


def _average(rows: Iterable[Sequence[float]], counts: Sequence[int]) -> list[float]:
    """Means over rows, weighted; exact sums, so that the order of the rows leaves no trace."""
    total = sum(counts)
    return [math.fsum(n * value for n, value in zip(counts, column, strict=True)) / total for column in zip(*rows, strict=True)]


def _provenance(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    """What all agree on, and the values of what they do not."""
    keys = sorted(set().union(*(c.provenance for c in calibrations)) - {"samples"})
    found: dict[str, Any] = {}
    for key in keys:
        values = [c.provenance[key] for c in calibrations if key in c.provenance]
        distinct = [v for place, v in enumerate(values) if v not in values[:place]]
        found[key] = distinct[0] if len(distinct) == 1 else sorted(distinct, key=repr)
    return found
