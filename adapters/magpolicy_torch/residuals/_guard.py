"""The safeguard's measurement: at a computed step, how far off the forecast would have been that a skip had used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magpolicy import Session

if TYPE_CHECKING:
    from magpolicy_torch.residuals._store import ResidualStore
    from torch import Tensor


def make_room(session: Session, store: ResidualStore, stream: str) -> None:
    """Before ``stream`` computes: let go of what no step after this one can use, nor the comparison after it, and of
    every copy on the device of what is in main memory."""
    store.bring({})
    if session.check(stream) is None:
        store.trim(stream, max(session.residuals_to_keep(stream) - 1, 0))


def compare(session: Session, store: ResidualStore, stream: str, residual: Tensor, channel_dim: int = -1) -> None:
    """Tell a guarded session how far the forecast is from ``residual``, just computed; it plans the rest anew if that is far.

    Nothing happens in a run without a safeguard. In one with it, this waits for the device, once a computed step; a thousand
    tokens are looked at.
    """
    check = session.check(stream)
    if check is None:
        return
    error = store.error(stream, residual, check[0], channel_dim)
    if error is not None:
        session.measured(stream, float(error))
