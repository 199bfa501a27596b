"""One picture of several runs: a row each, and below each but the first its difference from the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from magpolicy.adapter import require

BRIGHTER = 4
"""How many times as bright differences are drawn: as they are, one would hardly see them."""
_GAP, _LABEL, _TEXT, _LARGEST, _SMALLEST = 4, 190, 14, 384, 112
_BACKGROUND, _INK = (38, 38, 44), (225, 225, 230)


@frozen(eq=False)
class GridRow:
    """One run in the picture."""

    __module__ = "magpolicy_torch"

    lines: tuple[str, ...]
    """What stands beside it, a few words a line."""
    frames: Sequence[NDArray[Any]]
    """``(height, width, channels)`` each, in [0, 1] or bytes; one channel or three."""


def draw_grid(path: Path, rows: Sequence[GridRow], extra: str = "evaluate") -> None:
    """Write the picture: the first row is the full run, and each other one has its difference from it below, brightened.

    Args:
        path: the file, PNG.
        rows: runs with the same number of frames, of equal size.
        extra: the extra that a message names if Pillow is missing.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    image = require("PIL.Image", extra)
    strips = [(rows[0].lines, [_rgb(frame) for frame in rows[0].frames])]
    for row in rows[1:]:
        own = [_rgb(frame) for frame in row.frames]
        apart = [(BRIGHTER * np.abs(a - b)).clip(0, 1) for a, b in zip(own, strips[0][1], strict=True)]
        strips += [(row.lines, own), ((f"difference, {BRIGHTER} times as bright",), apart)]
    width, height = _cell(strips[0][1][0])
    size = (_LABEL + len(strips[0][1]) * (width + _GAP) + _GAP, len(strips) * (height + _GAP) + _GAP)
    picture = image.new("RGB", size, _BACKGROUND)
    for place, (lines, frames) in enumerate(strips):
        top = _GAP + place * (height + _GAP)
        _write(picture, lines, top, height, extra)
        for column, frame in enumerate(frames):
            tile = image.fromarray((frame * 255).round().astype(np.uint8))
            larger = width >= frame.shape[1]
            tile = tile.resize((width, height), image.Resampling.NEAREST if larger else image.Resampling.LANCZOS)
            picture.paste(tile, (_LABEL + column * (width + _GAP), top))
    picture.save(path, optimize=True)


def _rgb(frame: NDArray[Any]) -> NDArray[np.float32]:
    values = frame.astype(np.float32) / (255 if frame.dtype == np.uint8 else 1)
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values.clip(0, 1)


def _cell(frame: NDArray[Any]) -> tuple[int, int]:
    """Width and height of a frame in the picture: small ones are made larger by a whole factor, large ones smaller."""
    height, width = frame.shape[:2]
    longest = max(height, width)
    scale = max(1, _SMALLEST // longest) if longest <= _LARGEST else _LARGEST / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def _write(picture: Any, lines: Sequence[str], top: int, height: int, extra: str) -> None:
    pen = require("PIL.ImageDraw", extra).Draw(picture)
    font = require("PIL.ImageFont", extra).load_default(_TEXT)
    words = [line for line in lines if line][: max(1, height // (_TEXT + 4))]
    start = top + (height - len(words) * (_TEXT + 4)) // 2
    for place, line in enumerate(words):
        pen.text((_GAP + 4, start + place * (_TEXT + 4)), line, fill=_INK, font=font)
