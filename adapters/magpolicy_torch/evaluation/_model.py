"""A module that is attached to, called in the quickest way that is known to be right.

The first computed call of a kind is watched, block by block (``_call``). What it showed serves every call that looks like it:
computed calls only note what goes into the stack and what comes out, skips leave out the blocks, also the loop over them where
nothing happens in between. The first such skip is made in both ways, and compared.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define

import torch
from magpolicy import Decision
from magpolicy_torch.blocks._layout import ObservedLayout
from magpolicy_torch.blocks._stack import BlockStack, Unwatched, current, enter, leave
from magpolicy_torch.device import _accelerator
from magpolicy_torch.evaluation._call import Call, evaluate, image_of, watched
from magpolicy_torch.evaluation._call_spec import CallSpec, same, shown
from magpolicy_torch.evaluation._interceptor import HostCall, uncompiled
from magpolicy_torch.evaluation._run import Run, differences
from magpolicy_torch.evaluation._shadow import NoShadowError, ShadowModule
from magpolicy_torch.evaluation._shadow_builder import WAYS, ShadowBuilder
from magpolicy_torch.evaluation._stack_parts import StackIO, narrow, version
from torch import Tensor, nn

_KINDS_KEPT = 64  # kinds of calls that are remembered: shapes, switches, optional arguments


@define(eq=False)
class _Shadows:
    """The twins of one kind of call, for one call at a time."""

    idle: list[_Shadows]
    """Where they go after it."""
    tap: StackIO = Factory(StackIO)
    made: dict[str, ShadowModule | None] = Factory(dict)

    def get(self, name: str, make: Callable[[], ShadowModule | None]) -> ShadowModule | None:
        """The twin of that name; made if there is none yet."""
        twin = self.made.get(name)
        if twin is None or twin.stale:
            twin = self.made[name] = make()
        return twin

    @classmethod
    def lent(cls, idle: list[_Shadows]) -> _Shadows:
        """Twins for one call, to be given back. They are kept: a compiled twin is to be the same one again."""
        try:
            return idle.pop()  # atomic, as append is
        except IndexError:
            return cls(idle)

    def give_back(self) -> None:
        """The call is over."""
        self.tap.clear()
        self.idle.append(self)


class HostModel:
    """A module and its stack.

    Args:
        module: what is called; a :class:`magpolicy_torch.evaluation._interceptor.CallInterceptor` stands in front of it.
        stack: its blocks.
    """

    def __init__(self, module: nn.Module, stack: BlockStack) -> None:
        self.module, self.stack = module, stack
        self.making = ShadowBuilder(module, stack)
        self._known: dict[Any, CallSpec] = {}
        self.watching: list[_Shadows] = []
        self._lock = threading.Lock()
        self.unwatched = Unwatched(stack)
        self.everything = tuple(range(len(stack)))

    def evaluate(
        self,
        run: Run,
        streams: Sequence[str],
        original: HostCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        step: int | None = None,
        sigma: float | None = None,
    ) -> Any:
        """As :func:`magpolicy_torch.evaluate`, for ``original(*args, **kwargs)``."""
        call = Evaluation(self, run, streams, original, args, kwargs)
        return evaluate(run, streams, call.watched, step=step, sigma=sigma, way=call)

    def known(self, kind: Any) -> CallSpec | None:
        """What is understood of calls of this kind."""
        return self._known.get(kind)

    def remember(self, kind: Any, understood: CallSpec) -> None:
        """Calls of this kind are understood."""
        with self._lock:
            if kind not in self._known and len(self._known) >= _KINDS_KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[kind] = understood


class Evaluation:
    """One call of a model."""

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
        self._kind: Any = None
        self._understood: CallSpec | None = None

    @property
    def kind(self) -> Any:
        """What makes a call one of its kind: shapes, switches, and which of the optional arguments are given; no contents."""
        if self._kind is None:
            self._kind = (
                len(self.streams),
                torch.is_inference_mode_enabled(),
                shown(self.args) if self.args else (),
                *self.kwargs,
                *[(v.shape, v.dtype, v.device) if isinstance(v, Tensor) else shown(v) for v in self.kwargs.values()],
            )
        return self._kind

    @property
    def understood(self) -> CallSpec | None:
        """What is understood of calls of this kind."""
        if self._understood is None:
            self._understood = self.model.known(self.kind)
        return self._understood

    @property
    def learned(self) -> ObservedLayout | None:
        return None if self.understood is None else self.understood.learned

    def learn(self, call: Call) -> None:
        if self.understood is None and self.model.making.possible:
            understood = CallSpec.of(call)
            if understood is not None:
                self.model.remember(self.kind, understood)

    def device(self) -> torch.device | None:
        return next((v.device for v in (*self.kwargs.values(), *self.args) if isinstance(v, Tensor)), None)

    def plain(self) -> Any:
        visit = enter(self.model.unwatched)
        try:
            return self.original(*self.args, **self.kwargs)
        finally:
            leave(visit)

    def watched(self) -> Any:
        """The call, its blocks reporting to the call under way."""
        model, original = self.model, self.original
        if model.stack.scope == "model":
            call = current(model.stack)
            if call is None:
                return original(*self.args, **self.kwargs)
            return call.block(0, original, self.args, self.kwargs)
        twins = _Shadows.lent(model.watching)
        try:
            probing = twins.get("probing", lambda: model.making.probing())
            if probing is not None:
                with contextlib.suppress(NoShadowError):
                    return probing.watched(original, self.args, self.kwargs)
        finally:
            twins.give_back()
        # Somebody calls the module's own forward from within: its blocks have to be patched.
        model.stack.install_once()
        return uncompiled(original.compiling, lambda: original.eager(*self.args, **self.kwargs))

    def quick(self, *, skip: bool) -> tuple[Any, Decision | None] | None:
        if not skip and (self.run.unsupported.issuperset(self.streams) or not (self._compiled or self._wanted)):
            result = self.plain()
            self.run.computed = {}, ()
            return result, None
        understood = self.understood
        if understood is None or not self.run.unsupported.isdisjoint(self.streams):
            return None
        visit, twins = enter(self.model.unwatched), _Shadows.lent(understood.idle)
        try:
            return self._skip(understood, twins) if skip else (self._compute(understood, twins), None)
        except NoShadowError:
            return None
        finally:
            twins.give_back()
            leave(visit)

    @property
    def _wanted(self) -> bool:
        return self.run.wants()

    @property
    def _compiled(self) -> bool:
        """As a whole: then every computed call goes through one graph, also where nothing comes of it."""
        return self.original.compiling is not None

    def _compute(self, understood: CallSpec, twins: _Shadows) -> Any:
        copied = understood.learned.in_place is not False
        name = "computing, input copied" if copied else "computing"
        twin = twins.get(name, lambda: self.model.making.computing(understood, twins.tap))
        assert twin is not None
        result = twin(self.original, self.args, self.kwargs)
        residuals = self._residuals(understood, twins.tap, copied=copied) if self._wanted else {}
        if residuals is None:
            self.run.unsupported.update(self.streams)
        self.run.computed = residuals or {}, self.model.everything
        return result

    def _residuals(self, understood: CallSpec, tap: StackIO, *, copied: bool) -> dict[str, tuple[Tensor, ...]] | None:
        """Per stream what was noted; ``None`` if the blocks were not run as they were when the call was watched."""
        stack, learned = self.model.stack, understood.learned
        if tap.before is None or tap.last is None or tap.after is None:
            return None
        layout = stack.layouts[0]
        front, back = (0 if n == "auto" or layout.swapped else n for n in (layout.prefix, layout.suffix))
        before = narrow(tap.before.detach(), front, back)
        after = image_of(stack, learned.side, tap.last, tap.after, before.shape)
        if after is None or (after.dtype, after.device) != (before.dtype, before.device):
            return None
        if not copied and tap.version not in (-1, version(tap.before)):
            learned.in_place = True  # from now on; this call's input is lost
            return {}
        pairs = [(after, before)]
        if tap.also_before is not None and tap.also_after is not None:
            pairs.append((tap.also_after, tap.also_before))
        understood.entered(before)
        return differences(self.streams, pairs, layout.batch)

    def _skip(self, understood: CallSpec, twins: _Shadows) -> tuple[Any, Decision | None] | None:
        seen, everything, way = self.run.seen, self.model.everything, understood.skipping
        if way == "watched":
            return None
        for stream in self.streams:
            if seen.get(stream) != everything:
                return None
        if way is None:
            return self._try_out(understood, twins)
        reason = self._load(understood, twins.tap)
        if reason is None:
            twin = twins.get(way, lambda: self.model.making.skipping(understood, twins.tap, way))
            if twin is None:
                raise NoShadowError
            result = twin(self.original, self.args, self.kwargs)
            if not twins.tap.void:
                return result, None
            reason = Decision.MISMATCH
        twins.tap.clear()
        self.run.send_away()
        return self._compute(understood, twins), reason

    def _load(self, understood: CallSpec, tap: StackIO) -> Decision | None:
        """Have the residuals ready; or the reason why not."""
        run, streams, batch = self.run, self.streams, self.model.stack.layouts[0].batch
        taken = run.taken(streams, understood.shares(len(streams), batch), run.store, batch)
        if isinstance(taken, Decision):
            return taken
        tap.residual = taken
        if understood.also is not None and run.also.streams:
            also = run.taken(streams, understood.also.shared(len(streams), batch), run.also, batch)
            if isinstance(also, Decision):
                return also
            tap.also_residual = also
        return None

    def _try_out(self, understood: CallSpec, twins: _Shadows) -> tuple[Any, Decision | None]:
        """The first skip of its kind: watched, and then in the quicker ways; the first that gives just the same is taken."""
        tap = twins.tap
        result, revised = watched(self.run, self.streams, self.watched, self, skip=True)
        understood.skipping = "watched"
        if revised is not None or self._load(understood, tap) is not None:
            return result, revised
        devices = [tensor.device for tensor in (tap.residual,) if tensor is not None]
        with _accelerator.forked(devices):
            for name in WAYS:
                twin = self._trial(name, understood, tap, result)
                if twin is not None:
                    understood.skipping, twins.made[name] = name, twin
                    break
        return result, None

    def _trial(self, way: str, understood: CallSpec, tap: StackIO, result: Any) -> ShadowModule | None:
        """The twin that skips that way, if it gives ``result`` as well."""
        twin = self.model.making.skipping(understood, tap, way)
        if twin is None or self._load(understood, tap) is not None:
            return None
        try:
            found = twin.watched(self.original, self.args, self.kwargs)
            return twin if same(found, result) and not tap.void else None
        except Exception:  # it went well when it was watched
            return None
