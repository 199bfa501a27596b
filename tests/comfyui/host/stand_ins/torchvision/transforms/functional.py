"""Resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn.functional import interpolate

from torch import Tensor
from torchvision.transforms import InterpolationMode


def resize(image: Tensor, size: Sequence[int], interpolation: Any = None, antialias: Any = None) -> Tensor:
    """``image`` (batch, channels, height, width) at ``size``."""
    return interpolate(image, size=list(size), mode="nearest")


__all__ = ["InterpolationMode", "resize"]
