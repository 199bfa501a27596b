"""What :func:`magpolicy.attach` returns for a ``torch.nn.Module``: runs, streams, report."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

from attrs import frozen

import torch
from magpolicy import AdapterError, ArgumentError, AttachRequest, Curve, Decision, RunError, Schedule, TraceEntry
from magpolicy_torch._call import Run, evaluate
from magpolicy_torch._patch import Forward
from magpolicy_torch._stack import BlockStack, visited
from magpolicy_torch._store import ResidualStore
from torch import nn


@frozen
class Report:
    """What a run did."""

    trace: tuple[TraceEntry, ...]
    """Every decision, also those after the run's last step (``Decision.PAST_END``)."""
    schedule: Schedule | None
    """The steps of the run; ``None`` if nothing was evaluated."""

    @classmethod
    def of(cls, run: Run) -> Report:
        """The report of a run so far."""
        trace = list(run.session.trace)
        schedule = Schedule.from_trace(trace) if trace else None
        beyond: Counter[str] = Counter()
        for stream in run.past_end:
            trace.append(TraceEntry(run.session.steps + beyond[stream], stream, None, Decision.PAST_END, 1.0, 0.0, 0))
            beyond[stream] += 1
        return cls(tuple(trace), schedule)

    @property
    def computed(self) -> int:
        """Number of steps that ran the blocks in any stream."""
        return len({e.step for e in self.trace if not e.decision.skip})

    @property
    def skipped(self) -> int:
        """Number of steps at which every stream reused its residual."""
        return len({e.step for e in self.trace}) - self.computed

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason decided, all streams counted."""
        return dict(Counter(e.decision.reason for e in self.trace))

    def __str__(self) -> str:
        counts = ", ".join(f"{reason} {n}" for reason, n in self.reasons.items())
        return f"{self.schedule}\n{counts}" if self.schedule else "nothing was evaluated"


class Handle:
    """A policy attached to a module whose forward is called in your own loop.

    >>> import magpolicy, torch
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
    ...
    ...     def forward(self, x):
    ...         for block in self.blocks:
    ...             x = block(x)
    ...         return x
    >>> with magpolicy.attach(Net(), ratios=[1.0] * 6, threshold=0.1, max_skips=2, retention=0.2) as handle:
    ...     with handle.run(steps=6):
    ...         for _ in range(6):
    ...             _ = handle.module(torch.zeros(1, 4, 8))
    >>> print(handle.report.schedule)
    6 steps █··█··  2 computed  3.00x

    Runs and streams belong to the thread (the context) that opened them: threads that share a module don't see each
    other's. Calls outside any run compute as if nothing were attached.
    """

    def __init__(self, module: nn.Module, stack: BlockStack, request: AttachRequest) -> None:
        self.module = module
        self.stack = stack
        self._request = request
        self._patch = Forward(module, self._forward)
        # Every set() is undone in the same context, so nothing of a run is left in it.
        self._run: ContextVar[Run | None] = ContextVar("magpolicy_torch_run", default=None)
        self._streams: ContextVar[tuple[str, ...]] = ContextVar("magpolicy_torch_streams", default=("single",))
        self._lock = threading.Lock()
        self._active = 0
        self._attached = False
        self._warned = False
        self._last: Run | None = None

    @classmethod
    def attach(cls, module: nn.Module, request: AttachRequest) -> Handle:
        """Attach to ``module`` as asked; nothing is patched if that fails.

        Raises:
            AdapterError: attached already, or its blocks cannot be told.
            ArgumentError: an option that is not known here.
        """
        if Forward.on(module):
            raise AdapterError(f"{type(module).__name__} is attached already; detach() the first handle")
        if request.scope not in ("stack", "model"):
            raise ArgumentError(f"scope={request.scope!r} is not known; use 'stack' or 'model'")
        if request.scope == "model" and request.blocks is not None:
            raise ArgumentError("blocks is given, but scope='model' skips the whole model; leave one of them out")
        ResidualStore(request.offload, request.storage_dtype)  # complains now, not at the first run
        stack = BlockStack.whole(module) if request.scope == "model" else BlockStack.of(module, request.blocks)
        stack.install()
        handle = cls(module, stack, request)  # after the stack: its patch goes on top where the module is the stack
        handle._patch.install()
        handle._attached = True
        return handle

    @contextmanager
    def run(self, steps: int | None = None, sigmas: Sequence[float] | None = None, *, start: int = 0) -> Iterator[Handle]:
        """One run: ``with handle.run(steps=28): ...``. Leaving it, also by an exception, frees what it held.

        Args:
            steps: evaluations per stream; by default the ``steps`` given to ``attach``.
            sigmas: their noise levels, where known.
            start: position in the run of the first evaluation (image to image, a second stage).

        Raises:
            RunError: detached, or a run is under way in this thread.
            ArgumentError: the settings do not fit a run of that length.
        """
        if not self._attached:
            raise RunError("run(): this handle is detached; attach again")
        if self._run.get() is not None:
            raise RunError("run(): a run is under way here; leave its with block first")
        request = self._request
        session = request.session(steps, sigmas)
        store = ResidualStore(request.offload, request.storage_dtype)
        run = Run(self.stack, session, store, request.calibrate, channel_dim=1 if request.scope == "model" else -1)
        token = self._run.set(run)
        with self._lock:
            self._active += 1
        try:
            session.begin(start)
            yield self
        finally:
            try:
                session.end()
            finally:
                run.free()
                self._run.reset(token)
                with self._lock:
                    self._active -= 1
                    self._last = run

    @contextmanager
    def stream(self, *names: str) -> Iterator[Handle]:
        """Names the stream of the calls inside, or the streams batched in each of them, in batch order.

        >>> with handle.stream("cond", "uncond"):  # doctest: +SKIP
        ...     model(torch.cat([x, x]), ...)

        Raises:
            ArgumentError: no name, or one twice.
        """
        if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
            raise ArgumentError(f"stream{names!r} must name at least one stream, each once; try stream('cond', 'uncond')")
        token = self._streams.set(names)
        try:
            yield self
        finally:
            self._streams.reset(token)

    @property
    def report(self) -> Report:
        """What the run under way here has done so far, or else what the last finished one did.

        Raises:
            RunError: there was none yet.
        """
        return Report.of(self._current("report"))

    @property
    def curve(self) -> Curve:
        """The curve that the run measured; attach with ``calibrate=True``.

        Raises:
            RunError: not calibrating, no run yet, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no curve (another resolution midway, NaN).
        """
        run = self._current("curve")
        if not run.calibrate:
            raise RunError("curve: this handle does not calibrate; attach with calibrate=True")
        if run.unsupported or not run.norms:
            raise RunError("curve: the blocks could not be followed; describe them with blocks=BlockStack(..., layout=...)")
        return Curve.from_norms(run.norms, sigmas=run.session.sigmas)

    @property
    def residuals_held(self) -> int:
        """Residuals held for the run under way here: one per stream, none after it."""
        run = self._run.get()
        return 0 if run is None else len(run.store.streams)

    def _current(self, what: str) -> Run:
        run = self._run.get() or self._last
        if run is None:
            raise RunError(f"{what}: there was no run yet; call the model inside 'with handle.run(steps=...):'")
        return run

    def detach(self) -> None:
        """Leave the module as it was before; calling it again does nothing.

        Raises:
            RunError: a run is under way, here or in another thread.
        """
        with self._lock:
            if self._active:
                raise RunError("detach(): a run is under way; leave its with block first")
            if self._attached:
                self._attached = False
                self._patch.remove()
                self.stack.uninstall()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<Handle on {type(self.module).__name__}, {self.stack!r}, {'' if self._attached else 'not '}attached>"

    def _forward(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run.get()
        if run is None:
            if not self._warned:
                self._warned = True
                self._warn("called outside a run, so nothing is skipped; put the loop in 'with handle.run(steps=...):'")
            return original(*args, **kwargs)
        if visited(self.stack):  # the model calls itself: part of the evaluation under way
            return original(*args, **kwargs)
        streams = self._streams.get()
        if torch.is_grad_enabled() and getattr(self.module, "gradient_checkpointing", False):
            run.unsupported.update(streams)  # the backward pass would run blocks that the forward pass skipped
        before = len(run.past_end)
        result = evaluate(run, streams, partial(original, *args, **kwargs))
        if run.past_end and not before:
            self._warn(f"evaluated more often than the run's {run.session.steps} steps; the rest computes. Is steps right?")
        return result

    def _warn(self, what: str) -> None:
        warnings.warn(f"{type(self.module).__name__} was {what}", UserWarning, stacklevel=2)
