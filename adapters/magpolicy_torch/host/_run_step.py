"""A loop whose heavy part is a function: :func:`run_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from magpolicy import ArgumentError, RunError, Session
from magpolicy_torch.evaluation._run import Run, evaluate
from magpolicy_torch.evaluation._target import FunctionCall
from magpolicy_torch.host._report import Report
from magpolicy_torch.residuals._store import ResidualStore
from torch import Tensor

_stores: WeakKeyDictionary[Session, ResidualStore] = WeakKeyDictionary()
_runs: WeakKeyDictionary[Session, ReferenceType[Run]] = WeakKeyDictionary()  # the session holds its run, until it ends


def run_step(
    session: Session,
    x: Tensor,
    fn: Callable[[Tensor], Tensor],
    *,
    stream: str | Sequence[str] = "single",
    offload: str | None = None,
    storage_dtype: torch.dtype | None = None,
) -> Tensor:
    """``fn(x)``, or ``x`` plus a residual, as the session decides. The residual is that of ``fn``'s last call, or a forecast
    from its last calls.

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
        stream: the stream of this call, or the list of the streams that are batched in it.
        offload: ``"cpu"`` keeps residuals in main memory. The session's first step settles it.
        storage_dtype: dtype to keep residuals in. The session's first step settles it.

    Returns:
        a tensor of ``x``'s shape; without gradients of ``fn`` on a skip.

    Raises:
        ArgumentError: ``fn`` returned another shape, or the batch does not divide into the streams.
        RunError: the session's run is not under way, or over.
    """
    streams = (stream,) if isinstance(stream, str) else tuple(stream)
    if len(streams) > 1 and (not x.ndim or x.shape[0] % len(streams)):
        raise ArgumentError(f"x has shape {tuple(x.shape)}, which {len(streams)} streams cannot share equally")
    if any(session.remaining(name) <= 0 for name in streams):
        raise RunError(f"stream {', '.join(map(repr, streams))} has had its {session.steps} evaluations; begin another run")
    result: Tensor = evaluate(_run_of(session, offload, storage_dtype), streams, FunctionCall(fn, x))
    return result


def _run_of(session: Session, offload: str | None, storage_dtype: torch.dtype | None) -> Run:
    found = _runs.get(session)
    run = None if found is None else found()
    if run is None:
        store = _stores.get(session)
        if store is None:
            store = _stores[session] = ResidualStore(offload, storage_dtype)
        run = Run(session, store)
        _runs[session] = ref(run)
        session.report_by(partial(Report.of, session, run.record))
    return run
