"""Where residuals wait for the steps that reuse them: up to three per stream, freed when no step to come needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from attrs import define

import torch
from magpolicy import ArgumentError, Decision
from magpolicy_torch.device._accelerator import OutOfMemory
from magpolicy_torch.device._offload import Accelerator, Copier, Copy
from magpolicy_torch.residuals import _arithmetic
from torch import Tensor

_LOOKED_AT = 1024  # tokens, where a residual is compared with its forecast


@define(eq=False)
class _Entry:
    """A stored residual, and what it must be given back as."""

    kept: Copy
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    scale: Tensor | None = None  # what 8 bits have to be multiplied by; a scalar on the device
    away: bool = False  # in main memory, and a copier can bring it back
    near: Copy | None = None  # on the device, besides
    plain: bool = False  # as it was computed, where it was computed

    @property
    def data(self) -> Tensor:
        return self.kept.data

    @property
    def origin(self) -> tuple[torch.Size, torch.dtype, torch.device]:
        return self.shape, self.dtype, self.device


class ResidualStore:
    """The last residual of each stream, and the one or two before it if a forecast may need them.

    Args:
        offload: ``"cpu"`` keeps residuals in main memory (from an accelerator: pinned, and copied without blocking the host);
            ``None`` keeps them on the device that computed them. :meth:`take` copies them back, or :meth:`bring` ahead of it.
        storage_dtype: floating dtype to keep them in, such as ``torch.bfloat16``; ``None`` keeps their own. In 8 bits
            (``torch.float8_e4m3fn``) each residual is scaled so that its largest value fits.
        copier: makes the copies for ``offload="cpu"``; by default those of the accelerator that torch drives.

    Raises:
        ArgumentError: another ``offload``, or a ``storage_dtype`` that holds no fractions.
    """

    __module__ = "magpolicy_torch"

    def __init__(
        self, offload: str | None = None, storage_dtype: torch.dtype | None = None, *, copier: Copier | None = None
    ) -> None:
        if offload not in (None, "cpu"):
            raise ArgumentError(f"offload={offload!r} is not known; use None or 'cpu'")
        if not getattr(storage_dtype, "is_floating_point", storage_dtype is None):
            raise ArgumentError(f"storage_dtype={storage_dtype!r} must be a floating torch dtype; try torch.bfloat16")
        self.offload = offload
        self.storage_dtype = storage_dtype
        self.copier: Copier = Accelerator() if copier is None else copier
        self._entries: dict[str, tuple[_Entry | Decision, ...]] = {}  # per stream, newest first
        self._held: dict[str, Decision] = {}
        self.losses: list[Tensor] = []
        """Relative error of each residual as it is kept, scalars on the device, where ``storage_dtype`` is given."""

    def put(self, stream: str, residual: Tensor, *, keep: int = 1, near: bool = False) -> None:
        """Keep ``residual`` (any shape) for ``stream`` as its newest.

        A residual with NaN or infinity is not kept. Only CPU tensors are tested: on an accelerator the host would have to wait
        for the device; and if a residual has NaN, the computed output had it already.

        Args:
            keep: how many residuals later steps can use: 1 this one alone, 2 this one and the one before, ..., 0 none.
            near: leave it on its device too, until :meth:`bring` says whether it is needed there.
        """
        before = self._entries.pop(stream, ())[: max(keep - 1, 0)]
        if keep > 0:
            # Of another shape the one before is of no use, and as a reason it takes no memory.
            entry = self._entry(residual.detach(), near)
            older = tuple(o if isinstance(o, Decision) or _fits(o, entry) else Decision.MISMATCH for o in before)
            self._entries[stream] = (entry, *older)

    def finite(self, residual: Tensor) -> bool:
        """Whether :meth:`put` keeps ``residual``; ``False``: on the CPU, it has NaN or infinity as it would be kept."""
        return residual.device.type != "cpu" or _is_finite(residual, *self._narrowed(residual.detach()))

    def refuse(self, stream: str, *, keep: int = 1) -> None:
        """Keep no newest residual, as :meth:`put` does with one that is not finite: another rank's is not."""
        before = self._entries.pop(stream, ())[: max(keep - 1, 0)]
        if keep > 0:
            self._entries[stream] = (Decision.NOT_FINITE, *before)

    def _entry(self, residual: Tensor, near: bool) -> _Entry | Decision:
        data, scale = self._narrowed(residual)
        if data.device.type == "cpu" and not _is_finite(residual, data, scale):
            return Decision.NOT_FINITE
        if data is not residual:
            kept = data.float() if scale is None else data.float() * scale
            true = torch.linalg.vector_norm(residual, dtype=torch.float32).clamp(min=1e-30)
            self.losses.append(torch.linalg.vector_norm(kept - residual) / true)
        entry = _Entry(Copy(data), residual.shape, residual.dtype, residual.device, scale)
        if self.offload == "cpu" and self.copier.remote(data.device):
            entry.kept, entry.away = self.copier.away(data), True
            entry.near = Copy(data, entry.kept.done) if near else None  # the same work comes before both
        elif self.offload == "cpu":
            entry.kept = Copy(data.cpu())
        entry.plain = entry.kept.data is residual
        return entry

    def _narrowed(self, residual: Tensor) -> tuple[Tensor, Tensor | None]:
        """``residual`` as it is kept, and what that has to be multiplied by."""
        if self.storage_dtype is None:
            return residual, None
        if self.storage_dtype.itemsize > 1:
            return residual.to(self.storage_dtype), None
        scale = residual.abs().amax().float().clamp(min=1e-30) / torch.finfo(self.storage_dtype).max
        return (residual.float() / scale).to(self.storage_dtype), scale

    def take(self, stream: str, like: Tensor | None = None, coefficients: Sequence[float] = ()) -> Tensor | Decision:
        """The forecast of the stream's residual, on ``like``'s device and in its dtype, or the reason why there is none.

        Without ``like``, it has the device and the dtype of the computed residual.

        With r_j the newest, r_p and r_q those before, the forecast is ``r_j + c1 (r_j - r_p) + c2 (r_p - r_q)``, formed in
        ``like``'s dtype or, if wider, the stored one: from two residuals rounded once, from three twice. Without
        coefficients it is r_j. If only an older residual cannot be used, it is r_j too, and :meth:`held` says why.

        The reason is ``NO_RESIDUAL`` (none stored), ``NOT_FINITE``, or ``MISMATCH``: it was computed from another
        shape, dtype or device than ``like`` has. The residuals stay stored. Never waits for a device.
        """
        last, *more = self._entries.get(stream, (Decision.NO_RESIDUAL,))
        self._held.pop(stream, None)
        if isinstance(last, Decision):
            return last
        if like is not None and last.origin != (like.shape, like.dtype, like.device):
            return Decision.MISMATCH
        if not coefficients:
            return _back(last, last.device, last.dtype)
        entries = [last]
        for place in range(len(coefficients)):
            before = more[place] if place < len(more) else Decision.NO_RESIDUAL
            if isinstance(before, Decision):
                self._held[stream] = before
                return _back(last, last.device, last.dtype)
            entries.append(before)
        # In the wider of both dtypes, so that nothing is rounded before the difference is formed.
        wide = last.data.dtype if last.data.dtype.itemsize > last.dtype.itemsize else last.dtype
        return _arithmetic.forecast([_back(entry, last.device, wide) for entry in entries], coefficients).to(last.dtype)

    def error(self, stream: str, residual: Tensor, coefficients: Sequence[float], channel_dim: int = -1) -> Tensor | None:
        """Relative error of the forecast of ``residual``, a scalar on its device; ``None`` if there is no forecast."""
        lengths = self.compared(stream, residual, coefficients, channel_dim)
        return None if lengths is None else lengths[0] / lengths[1]

    def compared(self, stream: str, residual: Tensor, coefficients: Sequence[float], channel_dim: int = -1) -> Tensor | None:
        """Lengths of what the forecast of ``residual`` leaves, and of the residual: (2) on its device; ``None``: no forecast.

        About a thousand tokens of a sample are compared, evenly spaced along the last dimension of tokens.
        """
        wanted = 1 + len(coefficients)
        origin = residual.shape, residual.dtype, residual.device
        entries = [e for e in self._entries.get(stream, ())[:wanted] if isinstance(e, _Entry) and e.origin == origin]
        if len(entries) < wanted or not residual.ndim:
            return None
        some = _arithmetic.some_tokens(residual, channel_dim, _LOOKED_AT)
        true = residual.detach()[some].float()
        parts = [_back(e, true.device, torch.float32, some) for e in entries]
        found = _arithmetic.forecast(parts, coefficients) if coefficients else parts[0]
        return torch.stack([torch.linalg.vector_norm(true - found), torch.linalg.vector_norm(true)])

    def bring(self, wanted: Mapping[str, int]) -> None:
        """Begin to copy the newest residuals of these streams, the given number of each, back to their device, unless they are
        there. Free every other copy there; with ``{}`` all. Without ``offload`` this does nothing. Never waits for a device.
        """
        if self.offload is None:
            return
        for stream, entries in self._entries.items():
            count = wanted.get(stream, 0)
            if count > 1 and not (len(entries) >= count and all(isinstance(e, _Entry) for e in entries[:count])):
                count = 1  # it will be held
            for place, entry in enumerate(entries):
                if not isinstance(entry, _Entry) or not entry.away:
                    continue
                if place >= count:
                    entry.near = None
                elif entry.near is None:
                    with contextlib.suppress(OutOfMemory):  # when it is asked for there may be room
                        entry.near = self.copier.back(entry.kept, entry.device)

    def held(self, stream: str) -> Decision | None:
        """Why the last :meth:`take` of ``stream`` returned r_j instead of a forecast; ``None`` if it did not."""
        return self._held.get(stream)

    def missing(self, stream: str) -> Decision | None:
        """Why ``stream`` has no residual to reuse, of any shape; ``None`` if it has one."""
        entry = self._entries.get(stream, (Decision.NO_RESIDUAL,))[0]
        return entry if isinstance(entry, Decision) else None

    def trim(self, stream: str, keep: int) -> None:
        """Of the stream's residuals, forget all but the newest ``keep``."""
        kept = self._entries.pop(stream, ())[:keep]
        if kept:
            self._entries[stream] = kept

    def drop(self, stream: str) -> None:
        """Forget the stream's residuals, if any."""
        self._entries.pop(stream, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._held.clear()

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that have a residual."""
        return tuple(name for name, entries in self._entries.items() if isinstance(entries[0], _Entry))

    @property
    def count(self) -> int:
        """Residuals held, of all streams."""
        return len(self._stored())

    @property
    def nbytes(self) -> int:
        """Bytes of the residuals, in main memory or on a device, without the copies of :attr:`near_nbytes`."""
        return sum(entry.data.untyped_storage().nbytes() for entry in self._stored())

    @property
    def near_nbytes(self) -> int:
        """Bytes of the copies on the device of residuals that are in main memory."""
        return sum(e.near.data.untyped_storage().nbytes() for e in self._stored() if e.near is not None)

    @property
    def away(self) -> bool:
        """Whether :meth:`bring` has anything to do."""
        return self.offload is not None and any(entry.away for entry in self._stored())

    def _stored(self) -> list[_Entry]:
        return [entry for entries in self._entries.values() for entry in entries if isinstance(entry, _Entry)]


def _back(entry: _Entry, device: torch.device, dtype: torch.dtype, some: tuple[slice, ...] = ()) -> Tensor:
    if entry.plain and dtype is entry.dtype and not some:
        return entry.data
    near = entry.near
    data = entry.kept.on(device).to(device=device, non_blocking=True) if near is None else near.on(device)
    if some:  # only here: to copy a part, the host would gather it, and that before main memory has it all
        data = data[some]
    return data.to(dtype) if entry.scale is None else (data.float() * entry.scale).to(dtype)


def _is_finite(residual: Tensor, kept: Tensor, scale: Tensor | None) -> bool:
    """Whether a residual and what is kept of it are finite; 8 bits with a scale hold what has the residual's range."""
    return bool(torch.isfinite(kept if scale is None else residual).all())


def _fits(older: _Entry, newer: _Entry | Decision) -> bool:
    return isinstance(newer, Decision) or older.origin == newer.origin
