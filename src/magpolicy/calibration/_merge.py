"""Several samples' calibrations in one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve

from magpolicy._errors import ArgumentError
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._moments import StreamMoments

if TYPE_CHECKING:
    from magpolicy.calibration._calibration import Calibration


def merge(alike: Sequence[Calibration]) -> Calibration:
    """See :meth:`magpolicy.Calibration.merge`; those given are at the same noise levels."""
    first = alike[0]
    for other in alike[1:]:
        if set(other.streams) != set(first.streams):
            raise ArgumentError(
                f"calibrations have streams {sorted(first.streams)} and {sorted(other.streams)}; merge like with like"
            )
    counts = [c.merged for c in alike]
    pairs = set(first.cross).intersection(*(c.cross for c in alike))
    return evolve(
        first,
        streams={name: _streams([c.streams[name] for c in alike]) for name in first.streams},
        cross={pair: _mean([c.cross[pair] for c in alike], counts, _middle) for pair in sorted(pairs)},
        provenance=_provenance(alike) | {"samples": sum(counts)},
        name=first.name if all(c.name == first.name for c in alike) else "",
        aliases=sorted(set().union(*(c.aliases for c in alike))),
        prior_share=max(c.prior_share for c in alike),
    )


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
