"""How near pictures come to those of the full run: PSNR, SSIM and LPIPS as the field reports them, by torchmetrics.

Each is computed frame by frame in RGB in [0, 1], and averaged over frames and then over files: SSIM with a Gaussian window of
11 pixels, LPIPS on AlexNet.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

import torch
from magpolicy import ArgumentError, MissingExtraError
from magpolicy.adapter import require
from magpolicy_torch.device._accelerator import default
from torch import Tensor

CEILING = 100.0
"""PSNR of equal frames, in dB: a mean has to be a number."""
_AT_ONCE = 8  # frames held on the device at a time
_SSIM_WINDOW = 11


@frozen
class Similarity:
    """Two pictures or videos, compared."""

    __module__ = "magpolicy_torch"

    psnr: float
    """In dB, at most 100; higher is nearer."""
    ssim: float | None
    """At most 1, which is equal; ``None`` where it could not be computed."""
    lpips: float | None
    """0 is equal; ``None`` where it could not be computed."""
    frames: int

    @classmethod
    def mean(cls, found: Iterable[Similarity]) -> Similarity:
        """The mean of several, each counted once whatever its frames."""
        every = list(found)

        def over(values: list[float | None]) -> float | None:
            numbers = [value for value in values if value is not None]
            return float(np.mean(numbers)) if numbers and len(numbers) == len(values) else None

        psnr = float(np.mean([one.psnr for one in every]))
        return cls(psnr, over([s.ssim for s in every]), over([s.lpips for s in every]), sum(s.frames for s in every))


class SimilarityMeter:
    """Compares pictures and videos frame by frame.

    Args:
        device: a torch device; by default the accelerator where there is one.
        perceptual: whether LPIPS is computed, where torchvision is installed and its weights can be had.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """

    __module__ = "magpolicy_torch"

    def __init__(self, device: str | None = None, *, perceptual: bool = True) -> None:
        self._image = require("torchmetrics.functional.image", "evaluate")
        self._device = device or default()
        self.missing: dict[str, str] = {}
        """Why a metric has no figure, in words, by its name."""
        self._lpips = self._load_lpips() if perceptual else None

    def compare(self, full: Iterable[NDArray[Any]], made: Iterable[NDArray[Any]], name: str = "made") -> Similarity:
        """``full`` and ``made``, frames ``(height, width, channels)``: bytes, or numbers in [0, 1]; one channel or three.

        Raises:
            ArgumentError: they differ in size or number of frames, or there is none; the message begins with ``name``.
        """
        psnr: list[float] = []
        ssim: list[float] | None = []
        lpips: list[float] | None = []
        for pairs in _batches(_checked(full, made, name)):
            reference, other = (torch.stack([_as_tensor(pair[i]) for pair in pairs]).to(self._device) for i in (0, 1))
            psnr += self._psnr(reference, other)
            ssim = _joined(ssim, self._ssim(reference, other))
            lpips = _joined(lpips, self._perceptual(reference, other))
        if not psnr:
            raise ArgumentError(f"{name} has no frames")
        return Similarity(float(np.mean(psnr)), _mean(ssim), _mean(lpips), len(psnr))

    def _psnr(self, reference: Tensor, other: Tensor) -> list[float]:
        values = self._image.peak_signal_noise_ratio(other, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
        return [float(value) for value in values.clamp(max=CEILING)]

    def _ssim(self, reference: Tensor, other: Tensor) -> list[float] | None:
        if min(reference.shape[-2:]) < _SSIM_WINDOW:
            self.missing["ssim"] = f"its window takes frames of {_SSIM_WINDOW} pixels or more"
            return None
        values = self._image.structural_similarity_index_measure(other, reference, data_range=1.0, reduction="none")
        return [float(value) for value in values.reshape(-1)]

    def _perceptual(self, reference: Tensor, other: Tensor) -> list[float] | None:
        if self._lpips is None:
            return None
        try:
            pair = (other.expand(-1, 3, -1, -1), reference.expand(-1, 3, -1, -1))
            with torch.inference_mode():
                return [float(self._lpips(a[None], b[None])) for a, b in zip(*pair, strict=True)]
        except RuntimeError as error:  # frames that are too small for its network
            self.missing["lpips"] = f"it cannot be computed for these frames: {error}"
            return None

    def _load_lpips(self) -> Any:
        """The network, or ``None`` and why."""
        try:
            require("torchvision", "evaluate")
            perceptual = require("torchmetrics.image.lpip", "evaluate")
            return perceptual.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(self._device)
        except MissingExtraError as error:
            self.missing["lpips"] = str(error)
        except Exception as error:  # weights that cannot be had: no network, no room
            self.missing["lpips"] = f"the weights of its network cannot be had: {type(error).__name__}: {error}"
        return None


def _checked(
    full: Iterable[NDArray[Any]], made: Iterable[NDArray[Any]], name: str
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    both = itertools.zip_longest(full, made)
    for place, (a, b) in enumerate(both):
        if a is None or b is None:
            longer = place + 1 + sum(1 for _ in both)
            counts = (place, longer) if a is None else (longer, place)
            raise ArgumentError(f"{name} has {counts[1]} frames, the full run {counts[0]}; compare runs of equal length")
        if a.shape != b.shape:
            sizes = [f"{frame.shape[1]}x{frame.shape[0]}" for frame in (b, a)]
            raise ArgumentError(f"{name} is {sizes[0]}, the full run {sizes[1]}; compare runs of equal size")
        yield a, b


def _batches(
    pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]],
) -> Iterator[list[tuple[NDArray[Any], NDArray[Any]]]]:
    while batch := list(itertools.islice(pairs, _AT_ONCE)):
        yield batch


def _as_tensor(frame: NDArray[Any]) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    return values / 255 if values.dtype == torch.uint8 else values.float().clamp(0, 1)


def _joined(values: list[float] | None, more: list[float] | None) -> list[float] | None:
    return None if values is None or more is None else values + more


def _mean(values: list[float] | None) -> float | None:
    return float(np.mean(values)) if values else None
