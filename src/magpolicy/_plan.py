"""The best schedule for a speed: planned ahead from a calibration, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from magpolicy import _checks, _gram
from magpolicy._calibration import Calibration
from magpolicy._errors import ArgumentError
from magpolicy._gram import Floats, Table
from magpolicy._schedule import Schedule
from magpolicy._shortest import shortest_paths


def plan(
    source: Calibration,
    *,
    steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    speedup: float | None = None,
    computed: int | None = None,
    max_skips: int | None = None,
    forecast: str = "calibrated",
    damping: float = 1.0,
    power: float = 2.0,
) -> Schedule:
    """The best schedule for a speed, planned ahead.

    Args:
        source: a calibration.
        steps: steps of the run; the calibrated number by default.
        sigmas: or the noise levels of its evaluations.
        speedup: at least this many evaluations per computed one.
        computed: or the number of computed evaluations.
        max_skips: longest run of consecutive skips.
        forecast: ``"hold"``, ``"linear"`` or ``"calibrated"``.
        damping: factor on the linear forecast.
        power: the sum of the errors to this power is made least.
    """
    calibration = source.resample(steps=steps, sigmas=sigmas)
    count = calibration.steps
    if computed is None:
        speedup = _checks.number("speedup", speedup, 1, example="2.0")
        computed = max(1, int(count / speedup + 1e-9))
    reach = min(calibration.window, count) + 1
    if max_skips is not None:
        reach = min(reach, _checks.whole("max_skips", max_skips, 0, example="3") + 1)
    tables = {
        name: _gram.tabulate(moments.gram, reach, forecast, levels=calibration.sigmas, damping=damping)
        for name, moments in calibration.streams.items()
    }
    squared = {name: relative(calibration.streams[name].gram, table) for name, table in tables.items()}
    error = np.sqrt(np.mean(list(squared.values()), axis=0))
    paths = shortest_paths(gap_costs(error**power), computed)
    if computed not in paths:
        raise ArgumentError(f"computed={computed} of {count} cannot be had; try computed={min(paths, default=count)}")
    return _schedule(calibration, tables, squared, paths[computed].computed)


def relative(gram: Floats, table: Table) -> Floats:
    """Squared relative error of each forecast; infinite where not known."""
    count, reach = len(gram), table.squared.shape[2]
    j, k = np.arange(count)[:, None], np.arange(reach)[None, :]
    size = _gram.inner(gram, j + k, j + k)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = table.squared / size
    return np.where(np.isfinite(share), share, np.inf)


def gap_costs(each: Floats) -> Floats:
    """Cost of each gap ``[a, j, m]``, the sum over the evaluations j+1 ... j+m-1 skipped in it."""
    costs = np.zeros_like(each)
    costs[:, :, 2:] = np.cumsum(each[:, :, 1:-1], axis=2)
    return costs


def _schedule(
    calibration: Calibration, tables: dict[str, Table], squared: dict[str, Floats], computed: tuple[int, ...]
) -> Schedule:
    mask = [i in computed for i in range(calibration.steps)]
    coefficients, errors = {}, {}
    for name, table in tables.items():
        row, wrong = [0.0] * len(mask), [0.0] * len(mask)
        for a, j, k in skipped(mask):
            row[j + k] = float(table.coefficient[a, j, k])
            wrong[j + k] = float(np.sqrt(squared[name][a, j, k]))
        coefficients[name], errors[name] = row, wrong
    return Schedule.from_mask(dict.fromkeys(tables, mask), coefficients=coefficients, errors=errors)


def skipped(mask: Sequence[bool]) -> list[tuple[int, int, int]]:
    """(a, j, k) of each skipped evaluation j+k: j computed last, j-a before it (a=0: none)."""
    found, p, j = [], -1, 0
    for i, computes in enumerate(mask):
        if computes:
            p, j = (j if i else -1), i
        else:
            found.append((j - p if p >= 0 else 0, j, i - j))
    return found
