"""Residuals that wait in main memory: the copies there, and back before they are asked for."""

from __future__ import annotations

from typing import Any, Protocol

from attrs import frozen

import torch
from magpolicy_torch.device import _accelerator
from torch import Tensor


@frozen(eq=False)
class Copy:
    """A tensor that a copy fills, which may be under way."""

    data: Tensor
    done: Any = None
    """Marks the end of the copy, an event; ``None`` if it is over."""

    def on(self, device: torch.device) -> Tensor:
        """The tensor, for work on the current stream of ``device``: that waits for the copy, the host does not."""
        if self.done is not None:
            stream = _accelerator.current_stream(device)
            stream.wait_event(self.done)
            if self.data.device == device:  # of another stream: its memory is not to be given away while this one reads it
                _accelerator.lend(self.data, stream)
        return self.data


class Copier(Protocol):
    """Moves tensors between a device and main memory."""

    def remote(self, device: torch.device) -> bool:
        """Whether this copier serves that device. What is on any other is copied when it is asked for."""

    def away(self, tensor: Tensor) -> Copy:
        """A copy in main memory, begun now."""

    def back(self, copy: Copy, device: torch.device) -> Copy:
        """A copy on ``device`` of a copy in main memory, begun as soon as that is complete, beside the device's work."""


class Accelerator:
    """Pinned memory; the way there on the current stream, the way back on one of its own."""

    def remote(self, device: torch.device) -> bool:
        return _accelerator.remote(device)

    def away(self, tensor: Tensor) -> Copy:
        try:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:  # the system lets no more be pinned: slower, and the host waits, but the run goes on
            return Copy(tensor.cpu())
        pinned.copy_(tensor, non_blocking=True)
        return Copy(pinned, _accelerator.current_stream(tensor.device).record_event())

    def back(self, copy: Copy, device: torch.device) -> Copy:
        stream = _accelerator.beside(device)
        if copy.done is not None:
            stream.wait_event(copy.done)
        with _accelerator.using(stream):
            data = copy.data.to(device, non_blocking=True)
        return Copy(data, stream.record_event())
