"""A model with a stack, as something to evaluate: how each of its calls is observed, tapped or skipped."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from magpolicy import Decision
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._tokens import entering, leaving
from magpolicy_torch.device import _accelerator
from magpolicy_torch.evaluation._call_spec import CallSpec, Mounts, kind_of, same
from magpolicy_torch.evaluation._containers import Containers
from magpolicy_torch.evaluation._evaluate import evaluate
from magpolicy_torch.evaluation._interceptor import HostCall
from magpolicy_torch.evaluation._mounts import BlocksReplacedError, Mounted, Mounting
from magpolicy_torch.evaluation._observation import Observation
from magpolicy_torch.evaluation._parts import Part, Probe, Skip, SkippedBranch, StackIO, Tap, Unexpected, version
from magpolicy_torch.evaluation._run import Pairs, Run
from torch import Tensor

_KINDS_KEPT = 64  # kinds of calls that are remembered: shapes, switches, optional arguments
# What a skip may raise that was not tried before: its parts met another call than the one observed. No interruption is among
# these.
_NOT_SO = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_under_way: ContextVar[HostModel | None] = ContextVar("magpolicy_torch_model", default=None)


class HostModel:
    """A module and its stack.

    A host adapter has a :class:`~magpolicy_torch.adapter.CallInterceptor` hand it the module's calls, or makes them itself.

    Args:
        module: what is called.
        stack: its blocks.
    """

    def __init__(self, module: torch.nn.Module, stack: BlockStack) -> None:
        self.module, self.stack = module, stack
        self.mounting = Mounting(module, stack)
        self._specs: dict[Any, CallSpec] = {}
        self._lock = threading.Lock()

    @property
    def under_way(self) -> bool:
        """Whether a call of this model is being evaluated here: one that comes now is a part of it."""
        return _under_way.get() is self

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
        """As :func:`magpolicy_torch.evaluate`, for ``original(*args, **kwargs)``."""
        token = _under_way.set(self)
        try:
            call = ModelCall(self, run, streams, original, args, kwargs or {})
            return evaluate(run, streams, call, step=step, earliest=earliest, levels=levels)
        finally:
            _under_way.reset(token)

    def spec(self, kind: Any) -> CallSpec | None:
        """What is known of calls of this kind."""
        return self._specs.get(kind)

    def remember(self, kind: Any, spec: CallSpec) -> None:
        """Calls of this kind are like that."""
        with self._lock:
            if kind not in self._specs and len(self._specs) >= _KINDS_KEPT:
                self._specs.pop(next(iter(self._specs)))
            self._specs[kind] = spec


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
        self.kind = kind_of(args, kwargs)
        self.spec = model.spec(self.kind)

    @property
    def device(self) -> torch.device | None:
        return next((v.device for v in (*self.kwargs.values(), *self.args) if isinstance(v, Tensor)), None)

    def plain(self) -> Any:
        return self.original(*self.args, **self.kwargs)

    # A computed call.

    def compute(self, *, useful: bool) -> tuple[Any, Pairs | None]:
        # A model that is compiled as a whole goes through one graph whenever it computes, also where nothing comes of it.
        if not self.run.unsupported.isdisjoint(self.streams) or not (useful or self.original.compiling is not None):
            return self.plain(), ()
        try:
            spec = self.spec
            if spec is None or not spec.observed:
                return self._observe()
            with spec.mounts() as mounts:
                tapped = self._mounted(mounts, "copy" if spec.in_place else "compute", spec)
                result = tapped(self.original, self.args, self.kwargs)
                return result, self._pairs(spec, mounts.io) if useful else ()
        except BlocksReplacedError:
            self._blocks_replaced()
            return self.plain(), ()

    def _observe(self) -> tuple[Any, Pairs | None]:
        """The first call of its kind, its blocks watched."""
        way, observation = self.model.mounting.way, Observation(self.stack)
        if not way:
            self._problem("one of its blocks stands twice among them, and its forward is wrapped; attach with scope='model'")
            return self.plain(), None
        parts: dict[int, Part] = {}
        for index, block in enumerate(self.stack.blocks):
            parts[index] = Probe(block, partial(observation.block, index))
        for index, branch in enumerate(self.stack.side_branches):
            parts[len(self.stack) + index] = Probe(branch, partial(observation.branch, index))
        result = self.model.mounting.mount(way, parts).eager(self.original, self.args, self.kwargs)
        spec = observation.spec()
        if spec is None:
            self._problem(observation.problem)
            return result, None
        self.model.remember(self.kind, spec)
        self._stored(spec)
        return result, observation.pairs

    def _pairs(self, spec: CallSpec, io: StackIO) -> Pairs | None:
        """What the taps noted; ``None`` if the blocks were not run as they were when such a call was observed."""
        stack = self.stack
        if io.before is None or io.last is None or io.after is None:
            return None
        before = entering(stack.layouts[0], io.before.detach())
        if before is None:
            return None
        after = leaving(stack.layouts[-1], spec.side, io.last, io.after, before.shape)
        if after is None or (after.dtype, after.device) != (before.dtype, before.device):
            return None
        if not spec.in_place and io.version not in (-1, version(io.before)):
            spec.in_place = True  # from now on; this call's input is lost
            return ()
        self._stored(spec)
        if io.second_before is not None and io.second_after is not None:
            return [(after, before), (io.second_after, io.second_before)]
        return [(after, before)]

    def _stored(self, spec: CallSpec) -> None:
        self.run.specs.update(dict.fromkeys(self.streams, spec))

    # A skip.

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Any, Decision | None]:
        computed = [self.run.specs[stream] for stream in self.streams]
        spec = self.spec or computed[0].for_another_kind()
        if any(each.order != spec.order for each in computed):
            return self._unsupported("other blocks ran when the residual was computed")
        containers = Containers(self.args, self.kwargs)
        try:
            with spec.mounts() as mounts:
                if spec.route is None:
                    result, reason = self._first_skip(spec, mounts, residual, second, containers)
                else:
                    result, reason = self._skip(spec, mounts, spec.route, residual, second)
        except BlocksReplacedError:
            self._blocks_replaced()
            return None, Decision.UNSUPPORTED
        if reason is not None:
            containers.restore()
            if reason is Decision.UNSUPPORTED:
                return self._unsupported("on a skip the model called its blocks otherwise than when it computed")
        return result, reason

    def _skip(
        self, spec: CallSpec, mounts: Mounts, route: str, residual: Tensor, second: Tensor | None, *, eager: bool = False
    ) -> tuple[Any, Decision | None]:
        io, mounted = mounts.io, self._mounted(mounts, route, spec)
        io.residual, io.second_residual = residual, second
        result = (mounted.eager if eager else mounted)(self.original, self.args, self.kwargs)
        if io.strange or ((route == "full" or io.order) and tuple(io.order) != spec.order):
            return None, Decision.UNSUPPORTED
        return (None, Decision.MISMATCH) if io.misfit else (result, None)

    def _first_skip(
        self, spec: CallSpec, mounts: Mounts, residual: Tensor, second: Tensor | None, containers: Containers
    ) -> tuple[Any, Decision | None]:
        """By the full route, and then by the short one, which is taken from now on if it gives the same bits."""
        io = mounts.io
        try:
            result, reason = self._skip(spec, mounts, "full", residual, second, eager=True)
        except _NOT_SO:
            return None, Decision.MISMATCH if io.misfit else Decision.UNSUPPORTED
        if reason is not None:
            return None, reason
        spec.route = "full"
        if spec is not self.spec:
            self.model.remember(self.kind, spec)
        if self.model.mounting.has_short_route(self.model.mounting.way, spec):
            io.clear()
            containers.restore()
            try:
                with _accelerator.forked([residual.device]):
                    again, reason = self._skip(spec, mounts, "short", residual, second, eager=True)
                if reason is None and same(again, result):
                    del mounts.made["short", "shadow"]
                    spec.route = "short"
                    # inference tensors do not tell whether they were written to
                    spec.copies_text = torch.is_inference_mode_enabled() or any(version(t) != noted for t, noted in io.texts)
            except _NOT_SO:  # the loop over blocks is needed
                pass
        return result, None

    def _mounted(self, mounts: Mounts, what: str, spec: CallSpec) -> Mounted:
        """Parts that compute (``"compute"``, or ``"copy"`` the stack's input as well), or skip by a route."""
        way = self.model.mounting.way
        if what == "short" and way != "shadow":
            what = "full"  # somebody has wrapped the forward since
        mounted: Mounted | None = mounts.made.get((what, way))
        if mounted is None or mounted.stale:
            tapping = what in ("compute", "copy")
            parts = self._taps(spec, mounts.io, copied=what == "copy") if tapping else self._skips(spec, mounts.io, what)
            mounted = mounts.made[what, way] = self.model.mounting.mount(way, parts, what)
        return mounted

    def _taps(self, spec: CallSpec, io: StackIO, *, copied: bool) -> dict[int, Part]:
        last = len(self.stack) - 1
        return {
            index: Tap(
                self.stack.blocks[index], io, spec.patterns[index], first=index == 0, last=index == last, copied=copied
            )
            for index in {0, last}
        }  # fmt: skip

    def _skips(self, spec: CallSpec, io: StackIO, route: str) -> dict[int, Part]:
        stack, last = self.stack, len(self.stack) - 1
        kept, full = [last] if route == "short" else spec.order, route == "full"
        parts: dict[int, Part] = {
            index: Skip(
                stack.blocks[index], io, spec.patterns[index], stack.layouts[index], spec.side,
                first=index == kept[0], last=index == last, index=index if full else None,
                copies_text=full or spec.copies_text,
            )
            for index in kept
        }  # fmt: skip
        if full:
            left_out = set(range(len(stack))).difference(spec.order)
            parts.update({index: Unexpected(stack.blocks[index], io, index) for index in left_out})
            for index, (sources, returned) in spec.branches.items():
                parts[len(stack) + index] = SkippedBranch(stack.side_branches[index], sources, returned)
        return parts

    def _unsupported(self, why: str) -> tuple[None, Decision]:
        self.run.unsupported.update(self.streams)
        self._problem(why)
        return None, Decision.UNSUPPORTED

    def _blocks_replaced(self) -> None:
        self._problem("it holds other blocks than when it was attached to; attach again")

    def _problem(self, why: str) -> None:
        self.run.record.problem(f"{type(self.model.module).__name__} computes: {why}")
