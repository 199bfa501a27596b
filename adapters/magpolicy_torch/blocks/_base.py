"""What a residual is counted from, where the stack gives another dtype, or a whole model another shape, than it takes."""

from __future__ import annotations

from attrs import frozen

import torch
from torch import Tensor


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
