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


def normalize(image: Tensor, mean: Any, std: Any) -> Tensor:
    """A name to import."""
    raise RuntimeError("the stand-in of torchvision has no such operation")


def to_pil_image(image: Tensor) -> Any:
    """A name to import."""
    raise RuntimeError("the stand-in of torchvision has no such operation")


__all__ = ["InterpolationMode", "normalize", "resize", "to_pil_image"]
