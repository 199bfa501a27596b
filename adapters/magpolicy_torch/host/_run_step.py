"""A loop whose heavy part is a function: :func:`run_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from magpolicy import ArgumentError, Decision, RunError, Session
from magpolicy.adapter import CallDecision
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
    call = session.call(streams)
    if call is None:
        raise RunError(f"this run's {session.steps} steps are all decided; begin another run")
    try:
        if not store.streams:
            session.on_end(store.clear)
        revised = None
        if call.skip:
            taken = _take(call, store, x)
            if isinstance(taken, Tensor):
                result = _arithmetic.apply(x, taken)
                call.commit()
                look_ahead(call, store)
                return result
            revised = taken
        for decided in call.streams:
            _guard.make_room(decided, store)
        before = x.detach().clone()  # fn may write into its argument
        result = fn(x)
        if result.shape != before.shape:
            raise ArgumentError(f"fn returned shape {tuple(result.shape)} for {tuple(before.shape)}; both must be equal")
        residuals = list(map(_arithmetic.difference, _parts(result, streams), _parts(before, streams)))
        errors = {}
        for decided, residual in zip(call.streams, residuals, strict=True):
            if (error := _guard.error(decided, store, residual)) is not None:
                errors[decided.name] = error
        call.commit(revised, errors)
        for decided, residual in zip(call.streams, residuals, strict=True):
            store.put(decided.name, residual, keep=decided.keep, near=True)
    except BaseException:
        call.cancel()
        store.bring({})
        raise
    look_ahead(call, store)
    return result


def _take(call: CallDecision, store: ResidualStore, x: Tensor) -> Tensor | Decision:
    taken = []
    for decided, part in zip(call.streams, _parts(x, call.streams), strict=True):
        residual = store.take(decided.name, part, decided.coefficients)
        if isinstance(residual, Decision):
            return residual
        taken.append(residual)
    return taken[0] if len(taken) == 1 else torch.cat(taken)


def _parts(x: Tensor, streams: Sequence[object]) -> Sequence[Tensor]:
    return x.chunk(len(streams)) if len(streams) > 1 else (x,)
