"""Where residuals wait for the step that reuses them: one per stream, freed at the end of the run."""

from __future__ import annotations

from attrs import frozen

import torch
from magpolicy import ArgumentError, Decision
from torch import Tensor


@frozen(eq=False)
class _Entry:
    """A stored residual, and what it must be given back as."""

    data: Tensor
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    ready: torch.cuda.Event | None  # marks the end of the copy off the accelerator


class ResidualStore:
    """One residual per stream.

    Args:
        offload: ``"cpu"`` keeps residuals in main memory (pinned and copied without waiting where CUDA is available),
            ``None`` on the device they were computed on.
        storage_dtype: floating dtype to keep them in, such as ``torch.bfloat16``; ``None`` keeps their own.

    Raises:
        ArgumentError: another ``offload``, or a ``storage_dtype`` that holds no fractions.
    """

    def __init__(self, offload: str | None = None, storage_dtype: torch.dtype | None = None) -> None:
        if offload not in (None, "cpu"):
            raise ArgumentError(f"offload={offload!r} is not known; use None or 'cpu'")
        if not getattr(storage_dtype, "is_floating_point", storage_dtype is None):
            raise ArgumentError(f"storage_dtype={storage_dtype!r} must be a floating torch dtype; try torch.bfloat16")
        self.offload = offload
        self.storage_dtype = storage_dtype
        self._entries: dict[str, _Entry | Decision] = {}

    def put(self, stream: str, residual: Tensor) -> None:
        """Keep ``residual`` (any shape) for ``stream`` in place of the one before.

        A residual with NaN or infinity is not kept. Only CPU tensors are looked at: on an accelerator the test would
        make the host wait for the device, and there a NaN residual means the computed output was NaN already.
        """
        residual = residual.detach()
        origin = residual.shape, residual.dtype, residual.device
        data = residual if self.storage_dtype is None else residual.to(self.storage_dtype)
        if data.device.type == "cpu" and not bool(torch.isfinite(data).all()):
            self._entries[stream] = Decision.NOT_FINITE
            return
        ready = None
        if self.offload == "cpu" and data.device.type == "cuda":
            pinned = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
            data = pinned.copy_(data, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(residual.device))
        elif self.offload == "cpu":
            data = data.cpu()
        self._entries[stream] = _Entry(data, *origin, ready)

    def take(self, stream: str, like: Tensor) -> Tensor | Decision:
        """The stream's residual on ``like``'s device and in its dtype, or the reason why it cannot be used there.

        The reason is ``NO_RESIDUAL`` (none stored), ``NOT_FINITE``, or ``MISMATCH``: it was computed from another
        shape, dtype or device than ``like`` has. The residual stays stored. Never waits for a device.
        """
        entry = self._entries.get(stream, Decision.NO_RESIDUAL)
        if isinstance(entry, Decision):
            return entry
        if (entry.shape, entry.dtype, entry.device) != (like.shape, like.dtype, like.device):
            return Decision.MISMATCH
        if entry.ready is not None:  # in case the host went on to another CUDA stream
            torch.cuda.current_stream(like.device).wait_event(entry.ready)
        return entry.data.to(device=like.device, dtype=like.dtype, non_blocking=True)

    def missing(self, stream: str) -> Decision | None:
        """Why ``stream`` has nothing to reuse, whatever the shape; ``None`` if it has something."""
        entry = self._entries.get(stream, Decision.NO_RESIDUAL)
        return entry if isinstance(entry, Decision) else None

    def drop(self, stream: str) -> None:
        """Forget the stream's residual, if any."""
        self._entries.pop(stream, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that have a residual."""
        return tuple(name for name, entry in self._entries.items() if isinstance(entry, _Entry))

    @property
    def nbytes(self) -> int:
        """Bytes held, in whatever memory."""
        return sum(e.data.untyped_storage().nbytes() for e in self._entries.values() if isinstance(e, _Entry))
