"""Where a run lies on the noise schedule, from ComfyUI's sigmas alone.

Image to image, the stages of KSamplerAdvanced and two experts run a part of a schedule. The sampler is given that part only;
how much lies before and after it is told by the noise levels of its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from magpolicy.adapter import ScheduleSpan

_FLOOR = 1e-6  # an evaluation at 0 is an evaluation, not the end of a list


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
    begin, end = levels[0], share(float(sigmas[-1]))
    width = (begin - end) / len(levels)
    first, after = (round((1 - begin) / width), round(end / width)) if width > 0 else (0, 0)
    total = first + len(levels) + after
    near = 1.5 * unit + 1e-4
    even = all(abs(level - (1 - (first + i) / total)) <= near for i, level in enumerate(levels))
    flow = tuple(max(float(s), _FLOOR) for s in evaluations) if _is_flow(table) else levels
    return ScheduleSpan(levels, flow, first, after, even)


def _is_flow(table: Any) -> bool:
    return bool(0.99 <= table[-1] <= 1.001)


def steps_of(evaluations: Sequence[float], sigmas: Sequence[float]) -> list[int]:
    """The sampler's step that each evaluation belongs to: its own, or the last one that begins at its noise level or above."""
    steps = [float(s) for s in sigmas[:-1]]
    near = [abs(a - b) <= 1e-5 * max(b, _FLOOR) for a, b in zip(evaluations, steps, strict=False)]
    if len(evaluations) == len(steps) and all(near):
        return list(range(len(steps)))
    return [max((i for i, s in enumerate(steps) if s >= sigma * (1 - 1e-5)), default=0) for sigma in evaluations]
