"""What can be evaluated: the protocol, and a function of hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from attrs import define

import torch
from magpolicy import ArgumentError, Decision
from magpolicy_torch.residuals import _arithmetic
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]
"""What came out of the heavy part and what went in: hidden states, and the second stream where there is one."""


class Target(Protocol):
    """What is called, and how it is done with or without its heavy part."""

    @property
    def batch(self) -> int:
        """Dimension of the hidden states along which samples follow one another."""

    @property
    def device(self) -> torch.device | None:
        """Where the call is made, if it can be told."""

    def plain(self) -> Any:
        """The result of the call as it is."""

    def compute(self, *, useful: bool) -> tuple[Any, Pairs | Decision | None]:
        """The result, and what came out of the heavy part and went in. Or ``None`` if that cannot be told, and
        ``Decision.ANSWERED`` if something else answered in its place.

        Args:
            useful: whether anything comes of these.
        """

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Any, Decision | None]:
        """The result without the heavy part; or the reason why there is none. ``Decision.ANSWERED`` comes with the result that
        something else gave in its place.
        """


@define(eq=False)
class FunctionCall:
    """A function whose argument and result are hidden states."""

    function: Callable[[Tensor], Tensor]
    x: Tensor
    batch: int = 0

    @property
    def device(self) -> torch.device:
        return self.x.device

    def plain(self) -> Tensor:
        return self.function(self.x)

    def compute(self, *, useful: bool) -> tuple[Tensor, Pairs]:
        before = self.x.detach().clone()  # the function may write into its argument
        result = self.function(self.x)
        if result.shape != before.shape:
            raise ArgumentError(f"fn returned shape {tuple(result.shape)} for {tuple(before.shape)}; both must be equal")
        return result, [(result, before)]

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Tensor | None, Decision | None]:
        x = self.x
        if residual.shape != x.shape or residual.dtype is not x.dtype or residual.device != x.device:
            return None, Decision.MISMATCH
        return _arithmetic.apply(x, residual), None
