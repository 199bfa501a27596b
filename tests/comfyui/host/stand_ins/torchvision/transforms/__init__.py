"""Compose, Normalize, and resizing by the nearest pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from torch import Tensor


class InterpolationMode(Enum):
    """The modes ComfyUI names."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class Compose:
    """One after the other."""

    def __init__(self, steps: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.steps = list(steps)

    def __call__(self, value: Tensor) -> Tensor:
        for step in self.steps:
            value = step(value)
        return value


class Normalize:
    """(value - mean) / std"""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, value: Tensor) -> Tensor:
        return (value - self.mean) / self.std


class ToTensor:
    """A name to import."""


class Resize:
    """A name to import."""


class CenterCrop:
    """A name to import."""


class ToPILImage:
    """A name to import."""


class GaussianBlur:
    """A name to import."""


class RandomResizedCrop:
    """A name to import."""


from torchvision.transforms import functional  # noqa: E402

__all__ = [
    "CenterCrop", "Compose", "GaussianBlur", "InterpolationMode", "Normalize", "RandomResizedCrop", "Resize", "ToPILImage",
    "ToTensor", "functional",
]  # fmt: skip
