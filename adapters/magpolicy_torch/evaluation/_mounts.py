"""Where parts stand in the place of a model's blocks: in a shadow of the module, or in patches on the blocks themselves.

A skip goes one of two *routes*. ``"short"``: the lists of blocks are empty but for the last block of the last one, so the loop
over blocks is gone. ``"full"``: every block is called, and returns what it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.blocks._put_on import PutOn, to_its_end
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.evaluation._call_spec import CallSpec
from magpolicy_torch.evaluation._interceptor import HostCall, uncompiled
from magpolicy_torch.evaluation._observation import Observation
from magpolicy_torch.evaluation._parts import Part, Parts, Probe, Skip, SkippedBranch, StackIO, Tap, Unexpected
from magpolicy_torch.evaluation._shadow import ModulePath, ShadowModule, module_paths
from magpolicy_torch.evaluation._why import Why
from torch import nn


class Mounted(Protocol):
    """Parts, in their places."""

    @property
    def stale(self) -> bool:
        """Whether the model has changed since, so that they have to be mounted anew."""

    def __call__(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call with the parts in place."""

    def eager(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same with nothing compiled but what the blocks compile themselves."""


class MountingError(Exception):
    """Parts have no place in the model as it is now; the message says why."""


class Mounting:
    """Mounts parts in ``module``, whose blocks are those of ``stack``."""

    def __init__(self, module: nn.Module, stack: BlockStack) -> None:
        self.module, self.stack = module, stack
        self._blocks = (*stack.blocks, *stack.side_branches)
        self._paths = module_paths(module, self._blocks) if stack.scope == "stack" else None
        self._patches = _Patches(self._blocks, self._stands)
        self.stood_in = False
        """Whether a block was called by something that stood in for it in the last call that was looked at."""

    def probes(self, observation: Observation) -> Mounted:
        """Probes that report to ``observation``, all over. Raises MountingError."""
        parts: dict[int, Part] = {}
        for index, block in enumerate(self.stack.blocks):
            parts[index] = Probe(block, partial(observation.block, index))
        for index, branch in enumerate(self.stack.side_branches):
            parts[len(self.stack) + index] = Probe(branch, partial(observation.branch, index))
        return self._mount(self.way, parts)

    def parts(self, spec: CallSpec, io: StackIO, what: str) -> Mounted:
        """Parts that compute (``"compute"``, or ``"copy"`` what they note), or skip by a route. Raises MountingError."""
        way = self.way
        if what in ("compute", "copy"):
            return self._mount(way, self._taps(spec, io, copied=what == "copy"))
        route = what if way == "shadow" else "full"
        return self._mount(way, self._skips(spec, io, route), route)

    def _taps(self, spec: CallSpec, io: StackIO, *, copied: bool) -> dict[int, Part]:
        blocks, last = self.stack.blocks, len(self.stack) - 1
        return {
            index: Tap(
                blocks[index], io, spec.patterns[index], first=index == 0, last=index == last, copied=copied, entry=spec.entry
            )
            for index in {0, last}
        }

    def _skips(self, spec: CallSpec, io: StackIO, route: str) -> dict[int, Part]:
        stack, last, full = self.stack, len(self.stack) - 1, route == "full"
        kept = spec.order if full else (last,)
        # Models read attributes of their first block: the one part of the short route shows those.
        shown = {} if full else {last: stack.blocks[self._first_beside(last)]}
        parts: dict[int, Part] = {
            index: Skip(
                shown.get(index, stack.blocks[index]), io, spec.patterns[index], stack.layouts[index], spec.side,
                first=index == kept[0],
                last=index == last, index=index if full else None, copies_text=full or spec.copies_text, entry=spec.entry,
                bases=spec.bases, whole=stack.scope == "model",
            )
            for index in kept
        }  # fmt: skip
        if full:
            for index in set(range(len(stack))).difference(spec.order):
                parts[index] = Unexpected(stack.blocks[index], io, index)
            for index, (sources, returned) in spec.branches.items():
                parts[len(stack) + index] = SkippedBranch(stack.side_branches[index], sources, returned)
        return parts

    @property
    def way(self) -> str:
        """How parts are mounted in the module as it is now; empty if they cannot be."""
        if self.stack.scope == "model":
            return "whole"
        if self._paths is not None and ShadowModule.can_follow(self.module):
            return "shadow"
        return "patches" if len(set(self._blocks)) == len(self._blocks) else ""

    def _mount(self, way: str, parts: Parts, route: str = "full") -> Mounted:
        if way == "whole":
            return _Whole(parts[0])
        if not way:
            raise MountingError(Why.TWICE.says())
        if self._paths is not None and not self._in_place(self._paths):
            raise MountingError(Why.REPLACED.says())
        if way == "patches":
            return _Patched(self, self._patches, {id(self._blocks[index]): part for index, part in parts.items()})
        assert self._paths is not None
        contents: dict[str, dict[str, Any]] = {}
        for path, index in self._paths:
            if route == "short":
                contents.setdefault(path.path, {})
                if index in parts:
                    contents[path.path]["0"] = parts[index]
            elif index in parts:
                if path.path not in contents:
                    contents[path.path] = self._held(path) if path.path else {}
                contents[path.path][path.name] = parts[index]
        return ShadowModule(self.module, contents)

    def has_short_route(self, spec: CallSpec) -> bool:
        """Whether the blocks stand in lists that are run from end to end with nothing in between, and nothing beside them; of
        which there is only one, where the first block is passed something else than what enters the stack."""
        if self.way != "shadow" or self._paths is None or len(self._paths) != len(self.stack) or self.stack.side_branches:
            return False
        lists: dict[str, list[int]] = {}
        for path, index in self._paths:
            lists.setdefault(path.path, []).append(index)
        if spec.entry is not None and len(lists) > 1:
            return False
        whole = all(
            type(holder := self.module.get_submodule(path)) is nn.ModuleList and len(holder) == len(run)
            for path, run in lists.items()
        )
        in_turn = [index for run in lists.values() for index in run] == list(range(len(self.stack)))
        return whole and in_turn and spec.touched.isdisjoint(index for run in lists.values() for index in run[1:])

    def _first_beside(self, index: int) -> int:
        """The first of the blocks that stand in the same list as block ``index``."""
        paths = {number: path.path for path, number in self._paths or ()}
        return min(number for number, path in paths.items() if path == paths[index])

    def _in_place(self, paths: Sequence[tuple[ModulePath, int]]) -> bool:
        """Whether the stack's blocks are still those of the model."""
        holders = {path.path: self.module.get_submodule(path.path)._modules for path, _ in paths}
        return all(holders[path.path].get(path.name) is self._blocks[index] for path, index in paths)

    def _stands(self, index: int) -> bool:
        """Whether block ``index`` stands where it is kept. Other caches put something in the place of whole lists while a call
        lasts, which then calls the blocks, or does not."""
        for path, number in self._paths or ():
            if number == index and self.module.get_submodule(path.path)._modules.get(path.name) is not self._blocks[index]:
                self.stood_in = True
                return False
        return True

    def _held(self, path: ModulePath) -> dict[str, Any]:
        return dict(self.module.get_submodule(path.path)._modules)


class _Whole:
    """All of the model is one block: the part makes its call."""

    stale = False

    def __init__(self, part: Part) -> None:
        self._part = part

    def __call__(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._part.run(original, args, kwargs)

    eager = __call__


_mounted: ContextVar[tuple[_Patches, Mapping[int, Part]] | None] = ContextVar("magpolicy_torch_mounted", default=None)


class _Patched:
    """Parts that patches on the blocks ask while a call lasts."""

    def __init__(self, mounting: Mounting, patches: _Patches, parts: Mapping[int, Part]) -> None:
        self._mounting, self._patches, self._parts = mounting, patches, parts

    @property
    def stale(self) -> bool:
        return self._mounting.way != "patches"  # nobody stands around the forward any more

    def __call__(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._patches.on():
            token = _mounted.set((self._patches, self._parts))
            try:
                return uncompiled(original.compiling, lambda: original.eager(*args, **kwargs))
            finally:
                _mounted.reset(token)

    eager = __call__


class _Patches:
    """A patch on each block while any call needs one. Calls in other threads don't see its parts.

    A block that is called by something that stands in its place is left alone: the call is not the model's own.

    Args:
        blocks: what is patched.
        stands: whether a block, by its index, stands where it is kept.
    """

    def __init__(self, blocks: Sequence[nn.Module], stands: Callable[[int], bool]) -> None:
        self._blocks, self._stands, self._lock = blocks, stands, threading.Lock()
        self._users: set[object] = set()
        self._put_on = PutOn()

    @contextmanager
    def on(self) -> Iterator[None]:
        user = object()
        try:
            with self._lock:
                if not self._users:
                    patches = [Patch(block, self._around(index)) for index, block in enumerate(self._blocks)]
                    self._put_on.put_on(*((patch.install, patch.remove) for patch in patches))
                self._users.add(user)
            yield
        finally:
            to_its_end(partial(self._left, user))

    def _left(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self._put_on.take_off()

    def _around(self, index: int) -> Any:
        block = id(self._blocks[index])

        def around(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mounted = _mounted.get()
            part = mounted[1].get(block) if mounted is not None and mounted[0] is self else None
            if part is None or not self._stands(index):
                return original(*args, **kwargs)
            return part.run(original, args, kwargs)

        return around
