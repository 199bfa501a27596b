"""What :func:`magpolicy.attach` returns for a ``torch.nn.Module``: runs, streams, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from attrs import evolve

from magpolicy import AdapterError, ArgumentError, AttachRequest, RunError
from magpolicy.adapter import ModelIdentity, check_fits, repo_and_part
from magpolicy_torch.blocks._other_caches import cache_on, way_off
from magpolicy_torch.blocks._stack import BlockStack, taken
from magpolicy_torch.blocks._unwrap import own_name, unwrap
from magpolicy_torch.evaluation._interceptor import CallInterceptor, HostCall
from magpolicy_torch.evaluation._model import HostModel
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.host._attached import AttachedToLoop
from magpolicy_torch.host._held import Held
from magpolicy_torch.host._host_run import HostRun
from magpolicy_torch.host._identity import classes_of, identity_of
from magpolicy_torch.host._learning import Learner
from magpolicy_torch.host._scoped import Scoped
from magpolicy_torch.host._told_time import check_denoises
from magpolicy_torch.ranks._find import SharedBy
from magpolicy_torch.residuals._moments import moments_for, versions
from magpolicy_torch.residuals._store import ResidualStore
from torch import nn


def stack_for(
    module: nn.Module,
    request: AttachRequest,
    find: Callable[[nn.Module], BlockStack] | None = None,
    *,
    held: BlockStack | None = None,
) -> BlockStack:
    """The stack of ``module`` that ``request`` bypasses. It checks all that can be checked before anything is patched.

    Args:
        module: what is called.
        request: what was asked of the handle.
        find: finds the stack if the request does not name it; by default :meth:`BlockStack.find`.
        held: the stack of a handle on this module that is to be replaced, or that shares it.

    Raises:
        AdapterError: somebody else has attached to the module or its blocks, these are not clear, or another cache is on it.
        ArgumentError: an option is unknown.
    """
    if held is None and CallInterceptor.on(module):
        raise AdapterError(f"{own_name(module)} is attached already, by another adapter; detach() its handle first")
    if cache := cache_on(module):
        raise AdapterError(f"{own_name(module)} has another cache, {cache}; {way_off(module, cache)}")
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
    ours = () if held is None else (module, *held.blocks)
    if any(taken(block) for block in stack.blocks if block not in ours):
        raise AdapterError("blocks are attached already, by another model's handle; detach() that one first")
    return stack


def identity_of_module(module: nn.Module) -> ModelIdentity:
    """The identity of a module of no host, and where it was loaded from, as models of transformers tell it."""
    return identity_of(module, repo=repo_and_part(str(getattr(unwrap(module, peft=True), "name_or_path", "") or ""))[0])


_handles: WeakValueDictionary[int, Handle] = WeakValueDictionary()
"""By the module's id: a handle keeps its module, so that the id stays its own."""


class Handle(AttachedToLoop):
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

    __module__ = "magpolicy_torch"

    no_run = "call the model inside 'with handle.run(steps=...):'"

    def __init__(self, module: nn.Module, stack: BlockStack, request: AttachRequest) -> None:
        super().__init__(request)
        self._held = Held(module), Held(stack), Held(HostModel(unwrap(module), stack))
        self._scope, self._shown = stack.scope, f"{own_name(unwrap(module, peft=True))}, {stack!r}"
        self._learner = Learner(request, lambda: self.identity, self.provenance)
        self._run: Scoped[HostRun] = Scoped("magpolicy_run")
        self._last: HostRun | None = None

    @classmethod
    def attach(cls, module: nn.Module, request: AttachRequest) -> Handle:
        """Attach to ``module``, in the place of the handle that is on it. If that fails, nothing is changed.

        Raises:
            AdapterError: it is no denoiser, somebody else has attached to it or its blocks, or these are not clear.
            ArgumentError: an option is unknown, or the calibration is another model's.
            RunError: a run of the handle that is on it is under way.
        """
        check_denoises(module)
        inner = unwrap(module)
        check_fits(request.config.given, classes_of(module), host="torch")
        before = cls.on(inner)
        stack = stack_for(inner, request, held=None if before is None else before.stack)
        handle = cls(module, stack, evolve(request, group=SharedBy([module], request.group)))
        front = CallInterceptor(inner, handle._forward)
        handle.install(
            (stack.claim, stack.release), (front.install, front.remove), (handle._enter, handle._leave), replaces=before
        )
        return handle

    @staticmethod
    def on(module: nn.Module) -> Handle | None:
        """The handle that is on ``module``."""
        return _handles.get(id(unwrap(module)))

    def _enter(self) -> None:
        _handles[id(unwrap(self.module))] = self

    def _leave(self) -> None:
        if Handle.on(self.module) is self:
            _handles.pop(id(unwrap(self.module)), None)

    @property
    def module(self) -> nn.Module:
        """The model attached to. A handle that is detached keeps it no longer."""
        return self._held[0].need("module")

    @property
    def stack(self) -> BlockStack:
        """The blocks that are bypassed in it."""
        return self._held[1].need("stack")

    def loosen(self) -> None:
        for held in self._held:
            held.loosen()

    @contextmanager
    def open_run(self, steps: int | None, sigmas: Sequence[float] | None, start: int) -> Iterator[None]:
        if self._run.get() is not None:
            raise RunError("run(): a run is under way here; leave its with block first")
        with self.under_way():
            request = self.request
            learner = self._learner if request.learn else None
            if learner is None:
                lesson = None
            else:
                lesson = learner.lesson(request, whole=start == 0, steps=request.length(steps, sigmas))
                request = lesson.request
            run = HostRun(request, request.session(steps, sigmas), start, lesson=lesson)
            with self._run.set(run):
                try:
                    yield
                except BaseException:
                    run.stop()
                    raise
                finally:
                    run.end()
                    run.note(self.provenance)
                    if run.in_vain:
                        self.warn(run.in_vain)
                    with self._lock:
                        self._last = run

    @property
    def scope(self) -> str:
        """What a skip leaves out: the block ``"stack"``, or the whole ``"model"``."""
        return self._scope

    def try_go_to(self, step: int) -> bool:
        run = self._run.get()
        if run is not None:
            run.go_to(run.check_step(step))
        return run is not None

    @property
    def runs(self) -> Sequence[HostRun]:
        run = self._run.get() or self._last
        return () if run is None else (run,)

    def provenance(self) -> Mapping[str, Any]:
        return {"model": self._name, "identity": self.identity.to_dict(), "versions": versions()}

    @property
    def identity(self) -> ModelIdentity:
        return identity_of_module(self.module)

    @property
    def _name(self) -> str:
        return own_name(unwrap(self.module, peft=True))

    def __repr__(self) -> str:
        return f"<Handle on {self._shown}, {'' if self._attached else 'not '}attached>"

    def _forward(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run.get()
        if run is None:
            self.warn(Why.NO_RUN.says(model=self._name), once=True)
            return original(*args, **kwargs)
        model = self._held[2].need("module")
        if model.under_way:  # the model calls itself: part of the evaluation under way
            return original(*args, **kwargs)
        before = bool(run.record.past_end)
        result = run.evaluate(model, self.named_streams.get() or ("single",), original, args, kwargs)
        if run.record.past_end and not before:
            self.warn(run.too_long())
        return result
