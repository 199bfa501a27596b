"""Whether residuals keep the direction in which they move: seen on a few tokens of each that a run computes."""

from __future__ import annotations

import torch
from magpolicy_torch.residuals._arithmetic import some_tokens
from torch import Tensor

_LOOKED_AT = 256  # tokens; they are held besides the residuals, as are their changes


class Turns:
    """The last residual of each stream and its last change, at a few tokens."""

    __module__ = "magpolicy_torch"

    def __init__(self) -> None:
        self._last: dict[str, Tensor] = {}
        self._changes: dict[str, Tensor] = {}

    def add(self, stream: str, residual: Tensor, channel_dim: int = -1) -> Tensor | None:
        """Look at the residual just computed.

        Args:
            stream: its stream.
            residual: any shape.
            channel_dim: its dimension of channels.

        Returns:
            of its change since the residual before and the change before that: inner product, and the squared length of each;
            (3) on its device, sums over the tokens. ``None``: there were no two before of that shape.
        """
        with torch.inference_mode(False), torch.no_grad():
            new = residual.detach()[some_tokens(residual, channel_dim, _LOOKED_AT)].clone()
            last, before = self._last.get(stream), self._changes.pop(stream, None)
            self._last[stream] = new
            if last is None or (last.shape, last.device) != (new.shape, new.device):
                return None
            change = self._changes[stream] = new.float() - last.float()
            if before is None:
                return None
            # Sums all three: of a DTensor's parts, sums and norms cannot be stacked.
            return torch.stack([(change * before).sum(), (change * change).sum(), (before * before).sum()])

    def drop(self, stream: str) -> None:
        """Forget the stream's residuals, if any."""
        self._last.pop(stream, None)
        self._changes.pop(stream, None)

    def clear(self) -> None:
        """Forget everything."""
        self._last.clear()
        self._changes.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for held in (self._last, self._changes) for t in held.values())
