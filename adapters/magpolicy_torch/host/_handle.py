"""What :func:`magpolicy.attach` returns for a ``torch.nn.Module``: runs, streams, report."""

from __future__ import annotations

import abc
import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from magpolicy import AdapterError, ArgumentError, AttachRequest, Calibration, Curve, RunError
from magpolicy_torch.blocks._stack import BlockStack, taken, visited
from magpolicy_torch.evaluation._interceptor import CallInterceptor, HostCall, unwrapped
from magpolicy_torch.evaluation._model import HostModel
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.host._report import Report
from magpolicy_torch.host._scoped import Scoped
from magpolicy_torch.residuals._moments import calibrated, curve_of, measured, moments_for, versions
from magpolicy_torch.residuals._store import ResidualStore
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self


def stack_for(module: nn.Module, request: AttachRequest, find: Callable[[nn.Module], BlockStack] | None = None) -> BlockStack:
    """What ``request`` bypasses in ``module``, everything checked that can be before anything is patched.

    Args:
        find: finds the stack where the request does not name it; by default :meth:`BlockStack.find`.

    Raises:
        AdapterError: attached already, or its blocks cannot be told.
        ArgumentError: an option that is not known here.
    """
    if CallInterceptor.on(module):
        raise AdapterError(f"{type(module).__name__} is attached already; detach() the first handle")
    if request.scope not in ("stack", "model"):
        raise ArgumentError(f"scope={request.scope!r} is not known; use 'stack' or 'model'")
    if request.scope == "model" and request.blocks is not None:
        raise ArgumentError("blocks is given, but scope='model' skips the whole model; leave one of them out")
    ResidualStore(request.offload, request.storage_dtype)  # complains now, not at the first run
    moments_for(request)
    if request.scope == "model":
        stack = BlockStack.whole(module)
    elif request.blocks is None and find is not None:
        stack = find(module)
    else:
        stack = BlockStack.of(module, request.blocks)
    if any(map(taken, stack.blocks)):
        raise AdapterError("blocks are attached already; detach() the handle that holds them first")
    return stack


def checkpointing(module: nn.Module) -> bool:
    """Whether the backward pass will run blocks again: those that the forward pass skipped it must not."""
    return torch.is_grad_enabled() and bool(getattr(module, "gradient_checkpointing", False))


def check_step(step: int, steps: int, now: int) -> int:
    """``step`` of a run of ``steps``, which has come to ``now``.

    Raises:
        ArgumentError: there is no such step to come.
    """
    found = operator.index(step) if hasattr(step, "__index__") else -1
    if not now <= found < steps:
        raise ArgumentError(f"step={step!r} is not to come in this run of {steps} steps; use {now} to {steps - 1}")
    return found


class Attached(abc.ABC):
    """What every handle has: named streams, patches that come off again, and care for runs under way."""

    def __init__(self) -> None:
        self._streams: Scoped[tuple[str, ...]] = Scoped("magpolicy_streams")
        self._lock = threading.Lock()
        self._active = 0
        self._undo = ExitStack()
        self._attached = False
        self._warned = False

    def _install(self, *installed: tuple[Callable[[], None], Callable[[], None]]) -> None:
        """Pairs of what patches and what takes it off again; if one fails, those before it are undone."""
        with ExitStack() as undo:
            for put_on, take_off in installed:
                put_on()
                undo.callback(take_off)
            self._undo = undo.pop_all()
        self._attached = True

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """While a run is under way: the handle cannot be detached."""
        if not self._attached:
            raise RunError("run(): this handle is detached; attach again")
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1

    @contextmanager
    def stream(self, *names: str) -> Iterator[Self]:
        """Names the stream of the calls inside, or the streams batched in each of them, in batch order.

        >>> with handle.stream("cond", "uncond"):  # doctest: +SKIP
        ...     model(torch.cat([x, x]), ...)

        Raises:
            ArgumentError: no name, or one twice.
        """
        if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
            raise ArgumentError(f"stream{names!r} must name at least one stream, each once; try stream('cond', 'uncond')")
        with self._streams.set(names):
            yield self

    @abc.abstractmethod
    def go_to(self, step: int) -> None:
        """Inside :meth:`run`: the calls to come are those of ``step``, counted from 0 at the beginning of the full run.

        >>> with handle.run(steps=28):  # doctest: +SKIP
        ...     for step, t in enumerate(timesteps):
        ...         handle.go_to(step)
        ...         model(x, t, ...)

        Only needed where it is not plain: without it each call is its stream's next evaluation, or, with a model of diffusers,
        the timestep tells. To read that from an accelerator, the host has to wait for it at every call; this spares the wait.

        Raises:
            RunError: no run is under way here.
            ArgumentError: ``step`` lies outside the run, or before where it is.
        """

    def detach(self) -> None:
        """Leave everything as it was before; calling it again does nothing.

        Raises:
            RunError: a run is under way, here or in another thread.
        """
        with self._lock:
            if self._active:
                raise RunError("detach(): a run is under way; leave its with block first")
            self._attached = False
            self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.detach()

    def _warn(self, what: str) -> None:
        warnings.warn(what, UserWarning, stacklevel=4)


class Handle(Attached):
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
        super().__init__()
        self.module = module
        self.stack = stack
        self._model = HostModel(unwrapped(module), stack)
        self._request = request
        self._run: Scoped[Run] = Scoped("magpolicy_run")
        self._last: Run | None = None

    @classmethod
    def attach(cls, module: nn.Module, request: AttachRequest) -> Handle:
        """Attach to ``module`` as asked; nothing is patched if that fails.

        Raises:
            AdapterError: attached already, or its blocks cannot be told.
            ArgumentError: an option that is not known here.
        """
        inner = unwrapped(module)
        stack = stack_for(inner, request)
        handle = cls(module, stack, request)
        front = CallInterceptor(inner, handle._forward)
        handle._install((stack.claim, stack.release), (front.install, front.remove))
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
        if self._run.get() is not None:
            raise RunError("run(): a run is under way here; leave its with block first")
        request = self._request
        with self._under_way():
            session = request.session(steps, sigmas)
            store = ResidualStore(request.offload, request.storage_dtype)
            moments = moments_for(request, session.steps)
            run = Run(self.stack, session, store, moments, channel_dim=1 if self.stack.scope == "model" else -1)
            try:
                session.begin(start)
                run.at = start
                with self._run.set(run):
                    yield self
            except BaseException:
                if moments is not None:
                    moments.stopped = True
                raise
            finally:
                try:
                    session.end()
                finally:
                    run.free()
                    with self._lock:
                        self._last = run

    def go_to(self, step: int) -> None:
        run = self._run.get()
        if run is None:
            raise RunError(f"go_to({step}): no run is under way here; use it inside 'with handle.run(steps=...):'")
        run.at = check_step(step, run.session.steps, run.at)

    go_to.__doc__ = Attached.go_to.__doc__

    @property
    def report(self) -> Report:
        """What the run under way here has done so far, or else what the last finished one did.

        Raises:
            RunError: there was none yet.
        """
        run = self._current("report")
        return Report.of(run.session, run.record, self.stack.scope)

    @property
    def curve(self) -> Curve:
        """The curve that the run measured; attach with ``calibrate=True``.

        Raises:
            RunError: not calibrating, no run yet, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no curve (another resolution midway, NaN).
        """
        run = self._current("curve")
        return curve_of(measured("curve", run.moments, bool(run.unsupported)), run.session)

    @property
    def calibration(self) -> Calibration:
        """What the run measured; attach with ``calibrate=True``, and let the run go to its end.

        Raises:
            RunError: not calibrating, no run yet, a run that was stopped, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no calibration (another resolution midway, NaN).
        """
        run = self._current("calibration")
        moments = measured("calibration", run.moments, bool(run.unsupported))
        about = {"model": self._name, "scope": self.stack.scope, "versions": versions()}
        return calibrated(moments, run.session, about)

    @property
    def residuals_held(self) -> int:
        """Residuals held for the run under way here: one per stream, two where a forecast needs them, none after it."""
        run = self._run.get()
        return 0 if run is None else run.store.count

    def _current(self, what: str) -> Run:
        run = self._run.get() or self._last
        if run is None:
            raise RunError(f"{what}: there was no run yet; call the model inside 'with handle.run(steps=...):'")
        return run

    @property
    def _name(self) -> str:
        return type(unwrapped(self.module)).__name__

    def __repr__(self) -> str:
        return f"<Handle on {self._name}, {self.stack!r}, {'' if self._attached else 'not '}attached>"

    def _forward(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run.get()
        if run is None:
            if not self._warned:
                self._warned = True
                self._warn(
                    f"{self._name} was called outside a run, so nothing is skipped; put the loop in "
                    "'with handle.run(steps=...):'"
                )
            return original(*args, **kwargs)
        if visited(self.stack):  # the model calls itself: part of the evaluation under way
            return original(*args, **kwargs)
        streams = self._streams.get() or ("single",)
        if checkpointing(unwrapped(self.module)):
            run.unsupported.update(streams)
        before = len(run.record.past_end)
        # A stream that comes again without a step in between is at its next evaluation.
        step = max(run.at, *map(run.session.step, streams))
        result = self._model.evaluate(run, streams, original, args, kwargs, step=step)
        if run.record.past_end and not before:
            self._warn(
                f"{self._name} was evaluated more often than the run's {run.session.steps} steps; the rest computes. "
                "Is steps right?"
            )
        return result
