"""A model with a stack, as something to evaluate: how each of its calls is observed, tapped or skipped."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import torch
from magpolicy import Decision
from magpolicy_torch.blocks._entry import REGISTRIES, entry_of
from magpolicy_torch.blocks._other_caches import STANDS_IN
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._tokens import entering, leaving
from magpolicy_torch.blocks._unwrap import own_name
from magpolicy_torch.device import _accelerator
from magpolicy_torch.evaluation._call_spec import CallSpec, Mounts, holds_nan, same
from magpolicy_torch.evaluation._containers import Containers
from magpolicy_torch.evaluation._interceptor import HostCall
from magpolicy_torch.evaluation._mounts import Mounted, Mounting, MountingError
from magpolicy_torch.evaluation._observation import Observation
from magpolicy_torch.evaluation._parts import StackIO, version
from magpolicy_torch.evaluation._run import Run, evaluate
from magpolicy_torch.evaluation._target import Pairs
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.residuals._arithmetic import counted_from
from torch import Tensor, nn

COMPUTES = " computes: "
"""Between the name of a model whose blocks could not be followed, and why."""
_KINDS_KEPT = 64  # kinds of calls that are remembered: shapes, switches, optional arguments
# What a skip may raise that was not tried before: its parts met another call than the one observed. No interruption is among
# these.
_NOT_SO = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError)

_under_way: ContextVar[tuple[weakref.ref[ModelCall], ...]] = ContextVar("magpolicy_torch_calls", default=())
"""The calls that are being evaluated here, each made by the one before it; one that an interruption broke off is gone."""


class HostModel:
    """A module and its stack.

    A host adapter has a :class:`~magpolicy_torch.adapter.CallInterceptor` hand it the module's calls, or makes them itself.

    Args:
        module: what is called.
        stack: its blocks.
        positional: whether a call, by its keyword arguments, has the model do something at blocks of certain numbers, now or at
            another step. A skip of such a call always runs through the whole lists.
    """

    def __init__(
        self, module: nn.Module, stack: BlockStack, *, positional: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> None:
        self.module, self.stack, self.positional = module, stack, positional
        self.mounting = Mounting(module, stack)
        self.specs: dict[Any, CallSpec] = {}
        """What is known of calls, by their kind."""
        self.works: Sequence[nn.Module] = stack.blocks
        """Modules of which some run in every call that computes."""
        self._lock = threading.Lock()

    @property
    def under_way(self) -> bool:
        """Whether a call of this model is being evaluated in this context; a call that comes now is a part of it."""
        return any(call is not None and call.model is self for call in [known() for known in _under_way.get()])

    def evaluate(
        self,
        run: Run,
        streams: Sequence[str],
        original: HostCall,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        step: int | None = None,
        earliest: int | None = None,
        levels: Sequence[float] | None = None,
    ) -> Any:
        """Like :func:`magpolicy_torch.evaluate`, for ``original(*args, **kwargs)``."""
        call = ModelCall(self, run, streams, original, args, kwargs or {})
        token = _under_way.set((*_under_way.get(), weakref.ref(call)))
        try:
            return evaluate(run, streams, call, step=step, earliest=earliest, levels=levels)
        finally:
            _under_way.reset(token)

    def forget(self, kind: Any) -> None:
        """Calls of this kind are not like that any more; the next one is observed anew."""
        with self._lock:
            self.specs.pop(kind, None)

    def remember(self, kind: Any, spec: CallSpec) -> None:
        """Calls of this kind are like that."""
        with self._lock:
            if kind not in self.specs and len(self.specs) >= _KINDS_KEPT:
                self.specs.pop(next(iter(self.specs)))
            self.specs[kind] = spec


class ModelCall:
    """One call of a model: a target of :func:`magpolicy_torch.evaluate`."""

    def __init__(
        self,
        model: HostModel,
        run: Run,
        streams: Sequence[str],
        original: HostCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.model, self.run, self.streams = model, run, streams
        self.original, self.args, self.kwargs = original, args, kwargs
        self.stack = model.stack
        self.batch = model.stack.layouts[0].batch
        self.device = next((v.device for v in (*kwargs.values(), *args) if isinstance(v, Tensor)), None)
        first = model.stack.entrance
        self.entry = None if first is None or REGISTRIES.isdisjoint(first.__dict__) else entry_of(first)
        self.kind = _kind_of(args, kwargs), self.entry, _autocast(self.device)
        self.spec = model.specs.get(self.kind)
        self.strange = Why.OTHERWISE
        """Why it cannot be skipped, if it turns out so."""

    def plain(self) -> Any:
        return self.original(*self.args, **self.kwargs)

    # A computed call.

    def compute(self, *, useful: bool) -> tuple[Any, Pairs | Decision | None]:
        # A model that is compiled as a whole goes through one graph whenever it computes, also where nothing comes of it.
        if self.run.yields:
            return self._watch()
        if not self.run.unsupported.isdisjoint(self.streams) or not (useful or self.original.compiling is not None):
            return self.plain(), ()
        spec = self.spec
        try:
            return self._observe() if spec is None or not spec.observed else self._tap(spec, useful=useful)
        except MountingError as error:
            self._problem(str(error))
            return self.plain(), None

    def _watch(self) -> tuple[Any, Pairs | Decision]:
        """Another cache is at work: look whether anything in the blocks runs; they are called also if a hook on them answers.
        Nothing is put into what is compiled."""
        parts = {part: None for work in self.model.works for part in work.modules()}
        if self.original.compiling is not None or any(part._compiled_call_impl is not None for part in parts):
            return self.plain(), ()
        ran: list[nn.Module] = []
        with ExitStack() as hooks:
            for part in parts:
                if not any(part.children()):
                    hooks.callback(part.register_forward_pre_hook(lambda module, _: ran.append(module)).remove)
            result = self.plain()
        return result, () if ran else Decision.ANSWERED

    def _observe(self) -> tuple[Any, Pairs | None]:
        """The first call of its kind, its blocks watched."""
        observation = Observation(self.stack, self.entry)
        result = self.model.mounting.probes(observation).eager(self.original, self.args, self.kwargs)
        spec = observation.spec()
        if spec is None:
            self._problem(observation.problem)
            return result, None
        after = observation.pairs[0][0]
        spec.images.add((after.shape, after.dtype, after.device))
        self.model.remember(self.kind, spec)
        self.run.specs.update(dict.fromkeys(self.streams, spec))
        return result, observation.pairs

    def _tap(self, spec: CallSpec, *, useful: bool) -> tuple[Any, Pairs | Decision | None]:
        mounts = _lent(spec)
        try:
            mounted = self._mounted(spec, mounts, "copy" if spec.in_place else "compute")
            result = mounted(self.original, self.args, self.kwargs)
            if mounts.io.before is None and mounts.io.after is None:  # the blocks ran when such a call was observed
                return result, Decision.ANSWERED if self._yield() else None
            pairs = self._pairs(spec, mounts.io) if useful else ()
            if pairs is None:
                self._problem(Why.NOT_AS_OBSERVED.says())
                self.model.forget(self.kind)
            return result, pairs
        finally:
            mounts.io.clear()
            spec.idle.append(mounts)

    def _pairs(self, spec: CallSpec, io: StackIO) -> Pairs | None:
        """What the taps noted; ``None`` if the blocks were not run as they were when such a call was observed."""
        before, last, after = io.before, io.last, io.after
        if before is None or last is None or after is None:
            return None
        before = before.detach()
        whole = self.stack.scope == "model"
        if not whole and (self.stack.described or not before.shape == last.shape == after.shape):
            layouts = self.stack.layouts
            image = entering(layouts[0], before)
            found = None if image is None else leaving(layouts[-1], spec.side, last, after, image.shape)
            if image is None or found is None:
                return None
            before, after = image, found
        from_here = counted_from(spec.bases[0], before, after)
        if from_here is None:
            return None
        spec.images.add((after.shape, after.dtype, after.device))
        if io.written:
            spec.in_place = True  # from now on; this call's input is lost
            return ()
        for stream in self.streams:
            self.run.specs[stream] = spec
        if io.second_before is not None and io.second_after is not None:
            second = counted_from(spec.bases[1], io.second_before, io.second_after)
            return None if second is None else [(after, from_here), (io.second_after, second)]
        return [(after, from_here)]

    # A skip.

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Any, Decision | None]:
        computed = [self.run.specs[stream] for stream in self.streams]
        spec = self.spec or computed[0].for_another_kind(self.entry)
        if any(each.order != spec.order for each in computed):
            return self._unsupported(Why.OTHER_BLOCKS)
        if spec.images and (residual.shape, residual.dtype, residual.device) not in spec.images:
            return None, Decision.MISMATCH
        mounts = _lent(spec)
        held = [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, list | dict | tuple) and value]
        containers = Containers(held) if held else None
        try:
            if spec.route is None:
                result, reason = self._first_skip(spec, mounts, residual, second, containers)
            else:
                result, reason = self._skip(spec, mounts, spec.route, residual, second)
        except MountingError as error:
            return self._unsupported(error)
        finally:
            mounts.io.clear()
            spec.idle.append(mounts)
        if reason is Decision.ANSWERED:
            self._yield()
        elif reason is not None and containers is not None:
            containers.restore()
        if reason is Decision.UNSUPPORTED:
            return self._unsupported(self.strange)
        return result, reason

    def _skip(
        self, spec: CallSpec, mounts: Mounts, route: str, residual: Tensor, second: Tensor | None, *, eager: bool = False
    ) -> tuple[Any, Decision | None]:
        io, mounted = mounts.io, self._mounted(spec, mounts, route)
        io.residual, io.second_residual = residual, second
        result = (mounted.eager if eager else mounted)(self.original, self.args, self.kwargs)
        if route == "full" and not (io.order or io.strange or io.misfit):
            return result, Decision.ANSWERED
        if io.strange or ((route == "full" or io.order) and tuple(io.order) != spec.order):
            return None, Decision.UNSUPPORTED
        return (None, Decision.MISMATCH) if io.misfit else (result, None)

    def _first_skip(
        self, spec: CallSpec, mounts: Mounts, residual: Tensor, second: Tensor | None, containers: Containers | None
    ) -> tuple[Any, Decision | None]:
        """By the full route, and then by the short one, which is taken from now on if it gives the same bits."""
        io = mounts.io
        try:
            result, reason = self._skip(spec, mounts, "full", residual, second, eager=True)
        except _accelerator.OutOfMemory:  # it says nothing of the call; to compute takes more memory still
            raise
        except _NOT_SO:
            return None, Decision.MISMATCH if io.misfit else Decision.UNSUPPORTED
        if reason is not None:
            return result, reason
        if io.beside and (holds_nan(result) or any(made() is not None for made in io.beside)):
            self.strange = Why.BESIDE
            return None, Decision.UNSUPPORTED
        spec.route = "full"
        spec.images.add((residual.shape, residual.dtype, residual.device))
        if spec is not self.spec:
            self.model.remember(self.kind, spec)
        # Only an observed call has shown whether something happens between blocks, which may come to nothing this once: the
        # ControlNet residuals of a scale of zero.
        short = spec.observed and not (self.model.positional is not None and self.model.positional(self.kwargs))
        if short and self.model.mounting.has_short_route(spec):
            io.clear()
            if containers is not None:
                containers.restore()
            try:
                with _accelerator.forked([residual.device]):
                    again, reason = self._skip(spec, mounts, "short", residual, second, eager=True)
                if reason is None and same(again, result):
                    del mounts.made["short"]
                    spec.route = "short"
                    # inference tensors do not tell whether they were written to
                    spec.copies_text = torch.is_inference_mode_enabled() or any(version(t) != noted for t, noted in io.texts)
            except _accelerator.OutOfMemory:  # there is a result; the next skip tries again
                spec.route = None
            except _NOT_SO:  # the loop over blocks is needed
                pass
        return result, None

    def _mounted(self, spec: CallSpec, mounts: Mounts, what: str) -> Mounted:
        """As :meth:`Mounting.parts`, made anew where the model has changed."""
        mounted: Mounted | None = mounts.made.get(what)
        if mounted is None or mounted.stale:
            mounted = mounts.made[what] = self.model.mounting.parts(spec, mounts.io, what)
        return mounted

    def _yield(self) -> bool:
        """Compute from now on: another cache is at work. Whether it answered without the blocks, as far as that is known."""
        answered = not self.model.mounting.stood_in
        self.model.mounting.stood_in = False
        other = Why.OTHER_CACHE.says(cache=STANDS_IN, model=own_name(self.model.module))
        self.run.yield_to(Why.ANSWERED.says() if answered else other)
        return answered

    def _unsupported(self, why: Why | MountingError) -> tuple[None, Decision]:
        self.run.unsupported.update(self.streams)
        self._problem(why.says() if isinstance(why, Why) else str(why))
        return None, Decision.UNSUPPORTED

    def _problem(self, why: str) -> None:
        if self.model.mounting.stood_in:
            self._yield()
        else:
            self.run.record.problem(f"{own_name(self.model.module)}{COMPUTES}{why}")


def _lent(spec: CallSpec) -> Mounts:
    try:
        return spec.idle.pop()  # atomic, as append is
    except IndexError:
        return Mounts()


def _kind_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What makes a call one of its kind: shapes, switches, and which of the optional arguments are given; no contents."""
    return (
        torch.is_inference_mode_enabled(),
        _shown(args) if args else (),
        *kwargs,
        *[(v.shape, v.dtype, v.device) if isinstance(v, Tensor) else _shown(v) for v in kwargs.values()],
    )


def _autocast(device: torch.device | None) -> torch.dtype | None:
    """The dtype that autocast computes in on a device; ``None``: it is off. Blocks give other dtypes under it."""
    kind = "cpu" if device is None else device.type
    known = torch.amp.autocast_mode.is_autocast_available(kind)
    return torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else None


def _shown(value: Any) -> Any:
    """What of an argument makes the call one of its kind."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple([(key, _shown(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return tuple([_shown(item) for item in value])
    return value if value is None or isinstance(value, bool | int | str) else type(value)
