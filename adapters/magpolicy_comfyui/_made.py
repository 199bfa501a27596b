"""Which sampling made a latent: one model is often sampled several times in a prompt, or in one prompt after another.

A latent goes from node to node, on other devices, and is kept between prompts. A few of its numbers tell it from others.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from attrs import define, field

import torch
from magpolicy_comfyui._run_report import RunReport
from torch import Tensor

_NUMBERS, _RUNS = 16, 16
Mark = tuple[int, tuple[float, ...]]


@define(eq=False)
class MadeLatents:
    """The last samplings with one model, by what they returned."""

    _reports: deque[tuple[Mark, RunReport]] = field(factory=lambda: deque(maxlen=_RUNS))

    def add(self, samples: Any, report: RunReport) -> None:
        """A sampling returned ``samples``."""
        if (mark := _mark(samples)) is not None:
            self._reports.append((mark, report))

    def report_of(self, samples: Any) -> RunReport | None:
        """Of the last sampling that returned ``samples``; ``None`` if none did."""
        mark = _mark(samples)
        found = (report for made, report in reversed(self._reports) if mark is not None and _alike(made, mark))
        return next(found, None)


def _mark(samples: Any) -> Mark | None:
    """How many numbers, and some of them. Latents that are sampled together leave a sampler as one, and are parted later."""
    parts = samples.unbind() if getattr(samples, "is_nested", False) else [samples]
    if not all(isinstance(part, Tensor) and part.numel() and part.ndim for part in parts):
        return None
    if len({part.shape[0] for part in parts}) > 1:
        return None
    rows = [part.detach().reshape(part.shape[0], -1) for part in parts]
    flat = (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(_NUMBERS, len(flat)), dtype=torch.float64).long()
    return len(flat), tuple(flat[places.to(flat.device)].float().tolist())


def _alike(one: Mark, other: Mark) -> bool:
    """Whether it is one latent, rounded to half precision perhaps."""
    return one[0] == other[0] and all(
        math.isclose(a, b, rel_tol=0.01, abs_tol=1e-4) for a, b in zip(one[1], other[1], strict=True)
    )
