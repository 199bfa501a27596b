"""A loop whose heavy part is a function: :func:`run_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from magpolicy import ArgumentError, Decision, Session
from magpolicy_torch.device._offload import look_ahead
from magpolicy_torch.residuals import _arithmetic, _guard
from magpolicy_torch.residuals._store import ResidualStore
from torch import Tensor

_stores: WeakKeyDictionary[Session, ResidualStore] = WeakKeyDictionary()


def run_step(
    session: Session,
    x: Tensor,
    fn: Callable[[Tensor], Tensor],
    *,
    stream: str | Sequence[str] = "single",
    offload: str | None = None,
    storage_dtype: torch.dtype | None = None,
) -> Tensor:
    """``fn(x)``, or ``x`` plus the residual ``fn`` had when it last ran (or its forecast from the last few), as the session
    decides.

    >>> import magpolicy, torch
    >>> from magpolicy_torch import run_step
    >>> x = torch.zeros(1, 4, 8)
    >>> with magpolicy.Session([1.0] * 6, threshold=0.1, max_skips=2, retention=0.2) as session:
    ...     for _ in range(6):
    ...         x = run_step(session, x, lambda x: x + 1)

    Args:
        session: the run under way. Its residuals are freed when it ends.
        x: tensor of any shape; with several streams their samples follow one another in equal parts.
        fn: the heavy part; returns ``x``'s shape. Not called on a skip.
        stream: the stream of this call, or the list of those batched in it.
        offload: ``"cpu"`` keeps residuals in main memory. Fixed by the session's first step.
        storage_dtype: dtype to keep residuals in. Fixed by the session's first step.

    Returns:
        a tensor of ``x``'s shape; without gradients of ``fn`` on a skip.

    Raises:
        ArgumentError: ``fn`` returned another shape, or the batch does not divide into the streams.
        RunError: the session's run is not under way, or over.
    """
    streams = (stream,) if isinstance(stream, str) else tuple(stream)
    if len(streams) > 1 and (not x.ndim or x.shape[0] % len(streams)):
        raise ArgumentError(f"x has shape {tuple(x.shape)}, which {len(streams)} streams cannot share equally")
    store = _stores.get(session)
    if store is None:
        store = _stores[session] = ResidualStore(offload, storage_dtype)
    decision = session.decide(list(streams))
    try:
        if not store.streams:
            session.on_end(store.clear)
        revised = None
        if decision.skip:
            taken = _take(session, store, streams, x)
            if isinstance(taken, Tensor):
                result = _arithmetic.apply(x, taken)
                session.commit()
                look_ahead(session, store)
                return result
            revised = taken
        for name in streams:
            _guard.make_room(session, store, name)
        before = x.detach().clone()  # fn may write into its argument
        result = fn(x)
        if result.shape != before.shape:
            raise ArgumentError(f"fn returned shape {tuple(result.shape)} for {tuple(before.shape)}; both must be equal")
        for name, a, b in zip(streams, _parts(result, streams), _parts(before, streams), strict=True):
            residual = _arithmetic.difference(a, b)
            _guard.compare(session, store, name, residual)
            store.put(name, residual, keep=session.residuals_to_keep(name), near=True)
    except BaseException:
        session.cancel()
        store.bring({})
        raise
    session.commit(revised)
    look_ahead(session, store)
    return result


def _take(session: Session, store: ResidualStore, streams: Sequence[str], x: Tensor) -> Tensor | Decision:
    taken = []
    for name, part in zip(streams, _parts(x, streams), strict=True):
        residual = store.take(name, part, session.coefficients(name))
        if isinstance(residual, Decision):
            return residual
        taken.append(residual)
    return taken[0] if len(taken) == 1 else torch.cat(taken)


def _parts(x: Tensor, streams: Sequence[str]) -> Sequence[Tensor]:
    return x.chunk(len(streams)) if len(streams) > 1 else (x,)
