"""Image tokens among the hidden states of a block, where a model concatenates text to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from magpolicy_torch.blocks._layout import Layout
from torch import Tensor


def entering(layout: Layout, hidden: Tensor) -> Tensor | None:
    """The image tokens of what the first block is given; ``None`` if it holds fewer tokens than the described text."""
    if layout.swapped:
        return hidden
    front, back = (0 if count == "auto" else count for count in (layout.prefix, layout.suffix))
    enough = front + back == 0 or (hidden.ndim == 3 and hidden.shape[1] > front + back)
    return narrow(hidden, front, back) if enough else None


def leaving(layout: Layout, side: str | None, hidden: Tensor, after: Tensor, shape: torch.Size) -> Tensor | None:
    """Of ``after``, which the last block returned for ``hidden``: the image tokens, in the ``shape`` that entered the stack.

    ``None`` if it cannot be told which they are.
    """
    if after.shape != hidden.shape:
        return None
    if layout.swapped:
        return _swapped_back(after, shape) if after.numel() == shape.numel() else None
    found = bounds(layout, side, hidden, shape)
    image = None if found is None else narrow(after, *found)
    return image if image is not None and image.shape == shape else None


def bounds(layout: Layout, side: str | None, hidden: Tensor, image: torch.Size) -> tuple[int, int] | None:
    """Text tokens before and after the image tokens of ``hidden``, whose shape is given; ``None`` if that cannot be told."""
    if hidden.shape == image and layout.open:
        return 0, 0
    if hidden.ndim != 3 or len(image) != 3:
        return None
    return layout.front_back(hidden.shape[1] - image[1], side)


def replaced(hidden: Tensor, image: Tensor, layout: Layout, side: str | None) -> Tensor | None:
    """``hidden`` with its image tokens replaced; ``None`` if it cannot be told which they are."""
    if layout.swapped:
        return _swapped(image, hidden.shape) if hidden.numel() == image.numel() else None
    found = bounds(layout, side, hidden, image.shape)
    if found is None:
        return None
    front, back = found
    if not front and not back:
        return image if image.shape == hidden.shape else None
    return torch.cat([hidden[:, :front], image, hidden[:, hidden.shape[1] - back :]], dim=1)


def narrow(hidden: Tensor, front: int, back: int) -> Tensor:
    """``hidden`` without so many tokens at its ends."""
    return hidden[:, front : hidden.shape[1] - back] if front or back else hidden


def _swapped(image: Tensor, shape: Sequence[int]) -> Tensor:
    """``(batch * frames, places, channels)`` as ``(batch * places, frames, channels)``, the ``shape`` wanted."""
    frames, places = shape[1], image.shape[1]
    return image.reshape(-1, frames, places, image.shape[2]).transpose(1, 2).reshape(tuple(shape))


def _swapped_back(after: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse: ``(batch * places, frames, channels)`` in the ``shape`` the stack was entered with."""
    frames, places = after.shape[1], shape[1]
    return after.reshape(-1, places, frames, after.shape[2]).transpose(1, 2).reshape(tuple(shape))
