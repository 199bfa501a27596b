"""One call of a model, whose blocks are left out through the methods that its own forward asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

import torch
from magpolicy import Decision
from magpolicy_torch.adapter import Run, Scoped, apply
from torch import Tensor, nn


@define(eq=False)
class SeamCall:
    """A target of :func:`magpolicy_torch.evaluate`: a model that asks whether to run its blocks, and is told.

    Args:
        model: whose methods are asked.
        first: its first block, at whose input the residual begins.
        original: makes the call.
        request: the engine's request; its ``enable_spectrum`` has the model ask.
        run: notes why nothing comes of a call.
    """

    model: nn.Module
    first: nn.Module
    original: Callable[[], Any]
    request: Any
    run: Run
    device: torch.device | None = None
    batch: int = 0
    skips: bool = field(init=False, default=False)
    asked: bool = field(init=False, default=False)
    misfit: bool = field(init=False, default=False)
    residual: Tensor | None = field(init=False, default=None)
    before: Tensor | None = field(init=False, default=None)
    after: Tensor | None = field(init=False, default=None)

    def plain(self) -> Any:
        return self.original()

    def compute(self, *, useful: bool) -> tuple[Any, list[tuple[Tensor, Tensor]] | None]:
        if not useful:
            return self.original(), ()  # type: ignore[return-value]
        # A hook of the module, not another forward: Wan takes a slower path where a block has a forward of its own.
        hook = self.first.register_forward_pre_hook(self._entered, with_kwargs=True)
        try:
            result = self._asking(skips=False)
        finally:
            hook.remove()
        before, after, self.before, self.after = self.before, self.after, None, None
        if before is not None and after is not None and (before.shape, before.dtype) == (after.shape, after.dtype):
            return result, [(after, before)]
        why = "what entered and left them is not alike" if self.asked else "its forward did not ask"
        self.run.record.problem(f"{type(self.model).__name__} computes: {why}")
        return result, None

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Any, Decision | None]:
        self.residual = residual
        try:
            result = self._asking(skips=True)
        finally:
            self.residual = None
        if not self.asked:
            return None, Decision.UNSUPPORTED
        return (None, Decision.MISMATCH) if self.misfit else (result, None)

    def _asking(self, *, skips: bool) -> Any:
        self.skips, self.asked, self.misfit, before = skips, False, False, self.request.enable_spectrum
        self.request.enable_spectrum = True
        try:
            with SEAM.set(self):
                return self.original()
        finally:
            self.request.enable_spectrum = before

    def _entered(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        # A copy: the engine's fused kernels may write into what a block is given, and say so nowhere.
        self.before = hidden.detach().clone() if isinstance(hidden, Tensor) else None

    # What the model's forward calls.

    def begin(self) -> bool:
        """Whether to run the blocks."""
        self.asked = True
        return not self.skips

    def record(self, features: Tensor) -> None:
        """Note what came out of the blocks."""
        self.after = features.detach()

    def forecast(self, template: Tensor) -> Tensor:
        """What is used in place of what would come out: what would go in, and the residual."""
        residual = self.residual
        fits = residual is not None and (residual.shape, residual.dtype, residual.device) == (
            template.shape,
            template.dtype,
            template.device,
        )
        if residual is None or not fits:
            self.misfit = True
            return template
        return apply(template, residual)


SEAM: Scoped[SeamCall] = Scoped("magpolicy_sglang_call")
"""The call under way here."""


def of(model: Any) -> SeamCall | None:
    """The call under way here, if it is one of ``model``."""
    call = SEAM.get()
    return call if call is not None and call.model is model else None
