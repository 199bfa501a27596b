"""A module that is attached to, called in the quickest way that is known to be right.

The first computed call of a kind is watched, block by block (``_call``). What it showed serves every call that looks like it:
computed calls only note what goes into the stack and what comes out, skips leave out the blocks, also the loop over them where
nothing happens in between. The first such skip is made in both ways and compared.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import Factory, define

import torch
from magpolicy import Decision
from magpolicy_torch import _accelerator
from magpolicy_torch._call import Call, evaluate, image_of, watched
from magpolicy_torch._front import Original, uncompiled
from magpolicy_torch._layout import Learned
from magpolicy_torch._parts import Probe, Skipped, Tap, Tapped, narrow, version
from magpolicy_torch._run import Run, differences
from magpolicy_torch._stack import BlockStack, Unwatched, current, enter, leave
from magpolicy_torch._twin import Home, NoTwinError, Twin, homes_of
from magpolicy_torch._understood import Understood, same, shown
from torch import Tensor, nn

_KINDS_KEPT = 64  # kinds of calls that are remembered: shapes, switches, optional arguments

WAYS = {
    "last": "only the last list holds a block, which is first and last",
    "short": "every list holds one block",
    "full": "every block is called, and returns what it is given",
}
"""How a skip can be made, quickest first."""

Contents = dict[str, dict[str, nn.Module]]


@define(eq=False)
class _Twins:
    """The twins of one kind of call, for one call at a time."""

    idle: list[_Twins]
    """Where they go after it."""
    tap: Tap = Factory(Tap)
    made: dict[str, Twin | None] = Factory(dict)

    def get(self, name: str, make: Callable[[], Twin | None]) -> Twin | None:
        """The twin of that name; made if there is none yet."""
        twin = self.made.get(name)
        if twin is None or twin.stale:
            twin = self.made[name] = make()
        return twin

    def give_back(self) -> None:
        """The call is over."""
        self.tap.clear()
        self.idle.append(self)


class Model:
    """A module and its stack.

    Args:
        module: what is called; a :class:`magpolicy_torch._front.Front` stands in front of it.
        stack: its blocks.
    """

    def __init__(self, module: nn.Module, stack: BlockStack) -> None:
        self.module, self.stack = module, stack
        self._homes = homes_of(module, (*stack.blocks, *stack.beside)) if stack.scope == "stack" else None
        self._known: dict[Any, Understood] = {}
        self._idle: dict[Any, list[_Twins]] = {}
        self._lock = threading.Lock()
        self.unwatched = Unwatched(stack)
        self.everything = tuple(range(len(stack)))

    def evaluate(
        self,
        run: Run,
        streams: Sequence[str],
        original: Original,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        step: int | None = None,
        sigma: float | None = None,
    ) -> Any:
        """As :func:`magpolicy_torch.evaluate`, for ``original(*args, **kwargs)``."""
        call = _Calling(self, run, streams, original, args, kwargs)
        return evaluate(run, streams, call.watched, step=step, sigma=sigma, way=call)

    def known(self, kind: Any) -> Understood | None:
        """What is understood of calls of this kind."""
        return self._known.get(kind)

    def remember(self, kind: Any, understood: Understood) -> None:
        """Calls of this kind are understood."""
        with self._lock:
            if kind not in self._known and len(self._known) >= _KINDS_KEPT:
                oldest = next(iter(self._known))
                self._known.pop(oldest)
                self._idle.pop(oldest, None)
            self._known[kind] = understood

    def lend(self, kind: Any) -> _Twins:
        """Twins for one call of this kind, to be given back. They are kept: a compiled twin is to be the same one again."""
        idle = self._idle.get(kind)
        if idle is None:
            idle = self._idle.setdefault(kind, [])
        try:
            return idle.pop()  # atomic, as append is
        except IndexError:
            return _Twins(idle)

    def probing(self, original: Original) -> Twin | None:
        """A twin whose blocks report to the call under way."""
        if self._homes is None or not self._at_home():
            return None
        parts = [Probe(block, partial(self._watch, "block", index)) for index, block in enumerate(self.stack.blocks)]
        parts += [Probe(block, partial(self._watch, "beside", index)) for index, block in enumerate(self.stack.beside)]
        return Twin(self.module, original.kind, self._contents(dict(zip(self._homes, parts, strict=True))))

    def computing(self, original: Original, understood: Understood, tap: Tap) -> Twin:
        """A twin that computes, and notes what goes into the stack and what comes out.

        Raises:
            NoTwinError: the model has other blocks by now.
        """
        assert self._homes is not None
        if not self._at_home():
            raise NoTwinError
        last, copied = len(self.stack) - 1, understood.learned.in_place is not False
        parts: dict[Home, nn.Module] = {}
        for index in {0, last}:
            part = Tapped(
                self.stack.blocks[index], tap, understood.reads[index], understood.builds[index],
                first=index == 0, last=index == last, copied=copied,
            )  # fmt: skip
            parts[self._homes[index]] = part
        return Twin(self.module, original.kind, self._contents(parts))

    def skipping(self, original: Original, understood: Understood, tap: Tap, way: str) -> Twin | None:
        """A twin that skips in one of the :data:`WAYS`; ``None`` if it cannot."""
        assert self._homes is not None
        count = len(self.stack)
        runs = [list(range(count))] if way == "full" else list(_runs(self._homes[:count]))
        if self.stack.beside or not self._at_home() or (way != "full" and not self._clear(runs, understood)):
            return None
        if way == "last":
            kept = [count - 1]
        elif way == "short":
            kept = sorted({run[0] for run in runs} | {count - 1})
        else:
            kept = runs[0]
        parts: dict[Home, nn.Module] = {}
        for index in kept:
            part = Skipped(
                self.stack.blocks[index], tap, understood.reads[index], understood.builds[index],
                self.stack.layouts[index], understood.learned.side,
            )  # fmt: skip
            part.first, part.last = index == kept[0], index == kept[-1]
            parts[self._homes[index]] = part
        if way == "full":
            return Twin(self.module, original.kind, self._contents(parts))
        contents = {}
        for path in (self._homes[run[0]].path for run in runs):
            held = [part for home, part in parts.items() if home.path == path]
            contents[path] = {str(place): part for place, part in enumerate(held)}
        return Twin(self.module, original.kind, contents)

    def _at_home(self) -> bool:
        """Whether the stack's blocks are still those of the model."""
        blocks = (*self.stack.blocks, *self.stack.beside)
        holders = {home.path: self.module.get_submodule(home.path)._modules for home in self._homes or ()}
        return all(holders[home.path].get(home.name) is block for home, block in zip(self._homes or (), blocks, strict=True))

    def _clear(self, runs: Sequence[Sequence[int]], understood: Understood) -> bool:
        """Whether every list of blocks is run from end to end with nothing in between."""
        assert self._homes is not None
        paths = [self._homes[run[0]].path for run in runs]
        holders = [self.module.get_submodule(path) for path in paths]
        whole = all(
            type(holder) is nn.ModuleList and len(holder) == len(run) for holder, run in zip(holders, runs, strict=True)
        )
        between = {index for run in runs for index in run[1:]}
        return whole and len(set(paths)) == len(paths) and not between & understood.touched

    def _contents(self, parts: Mapping[Home, nn.Module]) -> Contents:
        contents: Contents = {}
        for home, part in parts.items():
            if home.path not in contents:
                contents[home.path] = dict(self.module.get_submodule(home.path)._modules) if home.path else {}  # type: ignore[arg-type]
            contents[home.path][home.name] = part
        return contents

    def _watch(self, what: str, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = current(self.stack)
        if call is None:
            return block(*args, **kwargs)
        return getattr(call, what)(index, block, args, kwargs)


def _runs(homes: Sequence[Home]) -> Iterator[list[int]]:
    """The blocks, by the module that holds them, as long as they follow one another there."""
    run: list[int] = []
    for index, home in enumerate(homes):
        if run and homes[run[-1]].path != home.path:
            yield run
            run = []
        run.append(index)
    yield run


class _Calling:
    """One call of a model."""

    def __init__(
        self,
        model: Model,
        run: Run,
        streams: Sequence[str],
        original: Original,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.model, self.run, self.streams = model, run, streams
        self.original, self.args, self.kwargs = original, args, kwargs
        # What makes a call one of its kind: shapes, switches, and which of the optional arguments are given; no contents.
        self.kind = (
            len(streams),
            torch.is_inference_mode_enabled(),
            shown(args) if args else (),
            *[(n, v.shape, v.dtype, v.device) if isinstance(v, Tensor) else (n, shown(v)) for n, v in kwargs.items()],
        )

    @property
    def learned(self) -> Learned | None:
        understood = self.model.known(self.kind)
        return None if understood is None else understood.learned

    def learn(self, call: Call) -> None:
        if self.model.known(self.kind) is None and self.model._homes is not None:
            understood = Understood.of(call)
            if understood is not None:
                self.model.remember(self.kind, understood)

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
        twins = model.lend(None)
        try:
            probing = twins.get("probing", lambda: model.probing(original))
            if probing is not None:
                with contextlib.suppress(NoTwinError):
                    return probing.watched(original.compiling, self.args, self.kwargs)
        finally:
            twins.give_back()
        # Somebody calls the module's own forward from within: its blocks have to be patched.
        model.stack.install_once()
        return uncompiled(original.compiling, lambda: original.kind.__call__(model.module, *self.args, **self.kwargs))

    def quick(self, *, skip: bool) -> tuple[Any, Decision | None] | None:
        if not skip and (self.run.unsupported.issuperset(self.streams) or not (self._compiled or self._wanted)):
            result = self.plain()
            self.run.keep(self.streams, {}, ())
            return result, None
        understood = self.model.known(self.kind)
        if understood is None or not self.run.unsupported.isdisjoint(self.streams):
            return None
        visit, twins = enter(self.model.unwatched), self.model.lend(self.kind)
        try:
            return self._skip(understood, twins) if skip else (self._compute(understood, twins), None)
        except NoTwinError:
            return None
        finally:
            twins.give_back()
            leave(visit)

    @property
    def _wanted(self) -> bool:
        return self.run.wants(self.streams)

    @property
    def _compiled(self) -> bool:
        """As a whole: then every computed call goes through one graph, also where nothing comes of it."""
        return self.original.compiling is not None or self.model.module._compiled_call_impl is not None

    def _compute(self, understood: Understood, twins: _Twins) -> Any:
        copied = understood.learned.in_place is not False
        name = "computing, input copied" if copied else "computing"
        twin = twins.get(name, lambda: self.model.computing(self.original, understood, twins.tap))
        assert twin is not None
        result = twin(self.original.compiling, self.args, self.kwargs)
        residuals = self._residuals(understood, twins.tap, copied=copied) if self._wanted else {}
        if residuals is None:
            self.run.unsupported.update(self.streams)
        self.run.keep(self.streams, residuals or {}, self.model.everything)
        return result

    def _residuals(self, understood: Understood, tap: Tap, *, copied: bool) -> dict[str, tuple[Tensor, ...]] | None:
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

    def _skip(self, understood: Understood, twins: _Twins) -> tuple[Any, Decision | None] | None:
        seen, everything = self.run.seen, self.model.everything
        if understood.skipping == "watched":
            return None
        for stream in self.streams:
            if seen.get(stream) != everything:
                return None
        if understood.skipping is None:
            return self._try_out(understood, twins)
        reason = self._load(understood, twins.tap)
        if reason is None:
            way = understood.skipping
            twin = twins.get(way, lambda: self.model.skipping(self.original, understood, twins.tap, way))
            if twin is None:
                raise NoTwinError
            result = twin(self.original.compiling, self.args, self.kwargs)
            if not twins.tap.void:
                return result, None
            reason = Decision.MISMATCH
        twins.tap.clear()
        self.run.send_away()
        return self._compute(understood, twins), reason

    def _load(self, understood: Understood, tap: Tap) -> Decision | None:
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

    def _try_out(self, understood: Understood, twins: _Twins) -> tuple[Any, Decision | None]:
        """The first skip of its kind: watched, and then in the quicker ways; the first that gives just the same is taken."""
        model, tap, callback = self.model, twins.tap, self.original.compiling
        result, revised = watched(self.run, self.streams, self.watched, self, skip=True)
        understood.skipping = "watched"
        if revised is not None or self._load(understood, tap) is not None:
            return result, revised
        devices = [tensor.device for tensor in (tap.residual,) if tensor is not None]
        for name in WAYS:
            twin = model.skipping(self.original, understood, tap, name)
            if twin is None:
                continue
            with _accelerator.forked(devices), contextlib.suppress(Exception):
                if same(twin.watched(callback, self.args, self.kwargs), result) and not tap.void:
                    understood.skipping, twins.made[name] = name, twin
                    break
            self._load(understood, tap)
        return result, None
