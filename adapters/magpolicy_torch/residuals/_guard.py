"""The safeguard's measurement: at a computed step, how far off the forecast would have been that a skip had used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magpolicy.adapter import StreamDecision

if TYPE_CHECKING:
    from magpolicy_torch.residuals._store import ResidualStore
    from torch import Tensor


def make_room(stream: StreamDecision, store: ResidualStore) -> None:
    """Before ``stream`` computes: let go of what no step after this one can use, nor the comparison after it, and of
    every copy on the device of what is in main memory."""
    store.bring({})
    if stream.check is None:
        store.trim(stream.name, max(stream.keep - 1, 0))


def error(stream: StreamDecision, store: ResidualStore, residual: Tensor, channel_dim: int = -1) -> float | None:
    """How far the forecast of the stream's check is from ``residual``, just computed; ``None`` where nothing is compared.

    In a run with a safeguard, this waits for the device, once a computed step; a thousand tokens are looked at.
    """
    if stream.check is None:
        return None
    found = store.error(stream.name, residual, stream.check[0], channel_dim)
    return None if found is None else float(found)
