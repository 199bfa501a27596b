"""A schedule as a picture, drawn into an array: the image output of the preview and report nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import torch
from magpolicy import Schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WIDTH, _ROW, _EDGE = 768, 48, 8
_PAPER, _COMPUTED, _SKIPPED = (250, 250, 250), (38, 70, 140), (206, 222, 245)


def picture(schedule: Schedule) -> torch.Tensor:
    """One row a stream, one field a step, dark where it computes: an image of ComfyUI, ``(1, height, width, 3)``, 0 to 1."""
    rows = list(schedule.masks)
    image = np.full((_EDGE + len(rows) * (_ROW + _EDGE), _WIDTH + 2 * _EDGE, 3), _PAPER, dtype=np.uint8)
    for index, mask in enumerate(rows):
        top = _EDGE + index * (_ROW + _EDGE)
        _row(image[top : top + _ROW, _EDGE:-_EDGE], mask)
    return torch.from_numpy(image).float().div(255)[None]


def _row(field: NDArray[np.uint8], mask: tuple[bool, ...]) -> None:
    edges = np.linspace(0, field.shape[1], len(mask) + 1).round().astype(int)
    for computed, left, right in zip(mask, edges[:-1], edges[1:], strict=True):
        gap = 1 if right - left > 3 else 0
        field[:, left : right - gap] = _COMPUTED if computed else _SKIPPED
