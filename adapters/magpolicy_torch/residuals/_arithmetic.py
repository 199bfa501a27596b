"""The residual arithmetic, the one place where it is written.

A residual is a block stack's output minus its input, at the image (or video) tokens: shape ``(batch, tokens, channels)``
for transformers, ``(batch, channels, height, width)`` for whole image models. Nothing here keeps an autograd graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class Base:
    """How what leaves a stack compares with what enters it, as one call has shown it. Holds no tensors.

    Where they have one shape, the residual is the output less the input in the output's dtype (under autocast blocks may take
    half precision and give single). Where they have not, as with a whole model that takes a picture beside the noise or
    returns a variance beside the mean, the residual is counted from nothing: it is the output itself. Noise and velocity stay
    nearly as they are from step to step, so that this is what holds.
    """

    given: tuple[int, ...]
    """Shape of the input."""
    returned: tuple[int, ...]
    """Shape of the output."""
    given_dtype: torch.dtype
    returned_dtype: torch.dtype

    @classmethod
    def of(cls, given: Tensor, returned: Tensor) -> Base | None:
        """``None`` where they are alike."""
        if (given.shape, given.dtype) == (returned.shape, returned.dtype):
            return None
        return cls(tuple(given.shape), tuple(returned.shape), given.dtype, returned.dtype)

    def before(self, given: Tensor, like: Tensor) -> Tensor | None:
        """What the residual of a call is counted from: of the shape, dtype and device of ``like``.

        Args:
            given: what enters in that call.
            like: what leaves, or the residual that is to be added.

        Returns:
            ``None`` if these two do not compare as those did.
        """
        if given.dtype is not self.given_dtype or like.dtype is not self.returned_dtype:
            return None
        if self.given == self.returned:
            return given.to(like) if given.shape == like.shape else None
        return torch.zeros_like(like) if self._fit(given.shape, like.shape) else None

    def _fit(self, given: torch.Size, returned: torch.Size) -> bool:
        """Whether these shapes go together: equal where those were (samples, height, width), else those."""
        if not len(given) == len(returned) == len(self.given) == len(self.returned):
            return (tuple(given), tuple(returned)) == (self.given, self.returned)
        sizes = zip(given, returned, self.given, self.returned, strict=True)
        return all(now == then if before == after else (now, then) == (before, after) for now, then, before, after in sizes)


def counted_from(base: Base | None, given: Tensor, like: Tensor) -> Tensor | None:
    """As :meth:`Base.before`; without a base they have to be alike."""
    if base is not None:
        return base.before(given, like)
    alike = given.shape == like.shape and given.dtype is like.dtype and given.device == like.device
    return given if alike else None


def difference(after: Tensor, before: Tensor) -> Tensor:
    """``after - before``, both of one shape: a fresh tensor of that shape without autograd history.

    Raises:
        RuntimeError: torch's own, if the shapes do not fit.
    """
    # inference_mode(False): a residual made under inference_mode must still be usable in a later step with gradients.
    with torch.inference_mode(False), torch.no_grad():
        return torch.sub(after.detach(), before.detach())


def apply(before: Tensor, residual: Tensor) -> Tensor:
    """``before + residual`` as a new tensor of ``before``'s dtype. Gradients flow through ``before``."""
    after = before + residual
    return after if after.dtype is before.dtype else after.to(before.dtype)


def forecast(residuals: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)`` of ``residuals`` r_j, r_p, r_q, all of one shape, dtype and device.

    One residual more than coefficients, of which there are one or two; a fresh tensor. The first difference takes one pass over
    the data: in bf16 and fp16 torch interpolates in float32 and rounds once, at the end, so that what is small against the
    residuals (their difference) is not lost to their rounding. The second is small itself, and formed before it is added.
    """
    last, before, *oldest = residuals
    found = torch.lerp(before, last, 1.0 + coefficients[0])
    return found.add_(torch.sub(before, oldest[0]), alpha=coefficients[1]) if oldest else found


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: of a DTensor that of all ranks, which they gather here; any other as it is."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


CHUNK = 2**22
"""Elements that are widened at a time."""


def widest(device: torch.device) -> torch.dtype:
    """The dtype in which sums are taken: MPS has no float64, nor have all of the others."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def numbers(measured: Tensor) -> list[float]:
    """What was measured, (n), as numbers; waits for the device. Of a DTensor that of all ranks."""
    whole: Tensor = measured.full_tensor() if hasattr(measured, "full_tensor") else measured
    return [float(number) for number in whole.tolist()]


def some_tokens(residual: Tensor, channel_dim: int, wanted: int) -> tuple[slice, ...]:
    """What picks about ``wanted`` evenly spaced places of each sample, along the last dimension but that of channels."""
    tokens = residual.ndim - 2 if channel_dim % max(residual.ndim, 1) == residual.ndim - 1 else residual.ndim - 1
    stride = max(1, residual.shape[tokens] // wanted) if tokens >= 0 else 1
    return (*(slice(None),) * max(tokens, 0), slice(None, None, stride)) if residual.ndim else ()
