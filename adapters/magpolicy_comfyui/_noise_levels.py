"""Where a run lies on the noise schedule, from ComfyUI's sigmas alone.

Image to image, the stages of KSamplerAdvanced and two experts run a part of a schedule. The sampler is given that part only;
how much lies before and after it is told by the noise levels of its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from magpolicy.adapter import ScheduleSpan

_FLOOR = 1e-6  # an evaluation at 0 is an evaluation, not the end of a list
_WHOLE = 0.85
"""A list that begins less of a step than this below the top is a whole run: tables of noise levels cut steps to entries."""
_NOTHING = 0.01
"""So little noise is none that anybody would go on from."""


def span_of(evaluations: Sequence[float], sigmas: Sequence[float], sampling: Any) -> ScheduleSpan:
    """Where a run lies.

    Args:
        evaluations: the sigma of each evaluation of the run.
        sigmas: the sampler's list; its last entry is where the run ends.
        sampling: ComfyUI's ``model_sampling``.
    """
    table = np.asarray(sampling.sigmas.detach().float().cpu(), dtype=np.float64).reshape(-1)
    unit = 1.0 / len(table)
    shares = np.arange(1, len(table) + 1) * unit

    def share(sigma: float) -> float:
        if sigma <= 0:
            return 0.0
        return float(np.interp(sigma, table, shares))

    levels = tuple(max(share(s), _FLOOR) for s in evaluations)
    first, after = _around([share(float(sigma)) for sigma in sigmas], len(levels), unit)
    total = first + len(levels) + after
    near = 1.5 * unit + 1e-4
    even = all(abs(level - (1 - (first + i) / total)) <= near for i, level in enumerate(levels))
    flow = tuple(max(float(s), _FLOOR) for s in evaluations) if _is_flow(table) else levels
    return ScheduleSpan(levels, flow, first, after, even)


def _around(steps: Sequence[float], evaluations: int, unit: float) -> tuple[int, int]:
    """Evaluations of the whole schedule before and after a run of so many, of which ``steps`` says the places of its steps."""
    begin, end, count = steps[0], steps[-1], len(steps) - 1
    if not begin > end:  # nor where a level is not a number
        return 0, 0
    step, each = (begin - end) / count, evaluations / count
    if cut := _space_of_one_cut_from_its_end(steps, unit):
        return round((1 - begin + unit / 2) // cut * each), 0
    first = round((1 - begin) / step * each) if 1 - begin >= _WHOLE * step else 0
    after = round(end / step * each)
    return first, max(after, 1) if end > _NOTHING else after


def _space_of_one_cut_from_its_end(steps: Sequence[float], unit: float) -> float | None:
    """The space between the steps of ``ddim_uniform``, which counts them from the bottom of the table: a whole run of it may
    begin nearly a space below the top, and its last step is as much shorter. ``None`` for other lists."""
    *evaluated, end = steps
    spaces = [a - b for a, b in pairwise(evaluated)]
    if end > 0 or not spaces or max(spaces) - min(spaces) > unit / 2:
        return None
    space = sum(spaces) / len(spaces)
    # It leaves out the bottom entry, which other lists with a short last step end at.
    return space if 1.5 * unit < evaluated[-1] < space - unit / 2 else None


def _is_flow(table: Any) -> bool:
    return bool(0.99 <= table[-1] <= 1.001)


def steps_of(evaluations: Sequence[float], sigmas: Sequence[float]) -> list[int]:
    """The sampler's step that each evaluation belongs to: its own, or the last one that begins at its noise level or above."""
    steps = [float(s) for s in sigmas[:-1]]
    near = [abs(a - b) <= 1e-5 * max(b, _FLOOR) for a, b in zip(evaluations, steps, strict=False)]
    if len(evaluations) == len(steps) and all(near):
        return list(range(len(steps)))
    return [max((i for i, s in enumerate(steps) if s >= sigma * (1 - 1e-5)), default=0) for sigma in evaluations]
