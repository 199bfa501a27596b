"""Whether a stream is conditioned on another prompt than when its residual was computed.

A prompt that moves on a little at each step (prompt travel, a blend) takes its residuals along: skipping there loses nothing.
After another prompt, a run that goes on with the residuals of the one before ends far from where the full run does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from magpolicy_diffusers._arguments import batch_dim
from magpolicy_diffusers._streams import samples
from torch import Tensor

FAR = 0.5
"""A condition that has moved by this share of its own length is another one. docs/explanation/residuals.md has the figures."""
_LOOKED_AT = 4096  # entries of each tensor, evenly spaced

Sample = tuple[Any, ...]
"""What is noted of a condition: of each tensor its shape and some entries, on the processor; anything else as it is."""


class Conditions:
    """What each stream of a run was conditioned on when it was computed last."""

    def __init__(self) -> None:
        self._now: dict[str, Sample] = {}
        self._computed: dict[str, Sample] = {}
        self._sizes: dict[str, tuple[Any, ...]] = {}

    def look_at(self, streams: Sequence[str], condition: Any, latents: Any) -> list[str]:
        """Note what these streams are conditioned on now. Waits for the device.

        Args:
            streams: those of one call, in batch order.
            condition: what the call is conditioned on: tensors, and lists and mappings of them.
            latents: what it denoises, of all streams together.

        Returns:
            the streams for which that is far from what it was when they were computed last.
        """
        far, rows = [], samples(latents)
        size = (rows // len(streams), *_shapes(latents))
        for place, stream in enumerate(streams):
            part = (place * rows // len(streams), (place + 1) * rows // len(streams)) if len(streams) > 1 else None
            now = self._now[stream] = tuple(_noted(condition, rows, part))
            if self._sizes.get(stream) != size:  # other samples: no residual has their shape
                self._sizes[stream], self._computed[stream] = size, now
            before = self._computed.setdefault(stream, now)
            if before is not now and distance(before, now) >= FAR:
                self._computed[stream] = now
                far.append(stream)
        return far

    def computed(self, streams: Sequence[str]) -> None:
        """These streams have been computed."""
        for stream in streams:
            self._computed[stream] = self._now[stream]

    def forget(self, stream: str) -> None:
        """The stream is gone."""
        for noted in (self._now, self._computed, self._sizes):
            noted.pop(stream, None)


def _shapes(latents: Any) -> Iterator[Any]:
    """What a sample measures, of each tensor: all but the number of samples."""
    if isinstance(latents, Tensor):
        yield tuple(latents.shape[1:])
    elif isinstance(latents, (list, tuple)):
        yield from dict.fromkeys(tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in latents)


def distance(one: Sample, other: Sample) -> float:
    """How far ``other`` is from ``one``, as a share of the length of ``one``; of several tensors the largest such share.

    Infinite where shapes, masks, labels or switches differ.
    """
    if len(one) != len(other):
        return math.inf
    found = 0.0
    for before, now in zip(one, other, strict=True):
        if isinstance(before, Tensor) and isinstance(now, Tensor) and before.is_floating_point():
            if before.shape != now.shape:
                return math.inf
            whole, moved = float(before.norm()), float((now - before).norm())
            found = max(found, moved / whole if whole else math.inf if moved else 0.0)
        elif not (torch.equal(before, now) if isinstance(before, Tensor) and isinstance(now, Tensor) else before == now):
            return math.inf
    return found


@torch.no_grad()
def _noted(value: Any, rows: int, part: tuple[int, int] | None) -> Iterator[Any]:
    """What is noted of a condition, or of the part of its samples that is one stream's."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _noted(item, rows, part)
    elif isinstance(value, (list, tuple)):
        if part is not None and len(value) == rows:
            value = value[slice(*part)]
        for item in value:
            yield from _noted(item, rows, None if part is not None and len(value) == part[1] - part[0] else part)
    elif isinstance(value, Tensor):
        dim = None if part is None else batch_dim(value, rows)
        if part is not None and dim is not None:
            value = value.narrow(dim, part[0], part[1] - part[0])
        yield tuple(value.shape)
        flat = value.detach().flatten()
        flat = flat[:: max(1, flat.numel() // _LOOKED_AT) | 1]  # an odd number of entries on: not always the same channels
        yield flat.to("cpu", torch.float32 if flat.is_floating_point() else flat.dtype, copy=True)
    else:
        yield value if isinstance(value, (bool, int, float, str)) else type(value).__name__
