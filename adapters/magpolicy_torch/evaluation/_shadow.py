"""A module's twin: the same attributes, parameters and code, with other modules in the place of its blocks."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from types import MethodType
from typing import Any

from attrs import frozen

import torch
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.evaluation._interceptor import HostCall, compiled, uncompiled, without_ours
from torch import nn


class NoShadowError(Exception):
    """The module is called in a way that a twin cannot follow."""


@frozen
class ModulePath:
    """Where a block is kept."""

    path: str
    """Of the module that holds it, from the root; a ``ModuleList`` most often."""
    name: str
    """Under which it is held there."""

    @property
    def inside(self) -> str:
        """The path of what it holds."""
        return f"{self.path}.{self.name}".lstrip(".")


def module_paths(root: nn.Module, blocks: Sequence[nn.Module]) -> tuple[ModulePath, ...] | None:
    """Where each of ``blocks`` is kept below ``root``; ``None`` if one is kept nowhere, or twice."""
    wanted = {id(block): index for index, block in enumerate(blocks)}
    found: dict[int, ModulePath] = {}
    for path, holder in root.named_modules():
        for name, child in holder._modules.items():
            index = wanted.get(id(child))
            if index is not None:
                if index in found:
                    return None
                found[index] = ModulePath(path, name)
    return tuple(found[i] for i in range(len(blocks))) if len(found) == len(blocks) else None


class ShadowModule:
    """``root``, in which the modules at the paths of ``contents`` hold what is said there; at the path ``""``, hold it too.

    Everything but that is shared: parameters, buffers, submodules. What the forward sets on it is carried over to ``root``.
    """

    def __init__(self, root: nn.Module, contents: Mapping[str, Mapping[str, nn.Module]]) -> None:
        self._root = root
        self._overlay = dict(contents.get("", {}))
        made: dict[str, nn.Module] = {}
        self._made_of = [(root._modules, dict(root._modules))]
        for path in sorted({p for held in contents for p in _prefixes(held)}, key=len, reverse=True):
            source = root.get_submodule(path)
            if path not in contents or contents[path].keys() == source._modules.keys():  # else nothing of it is in here
                self._made_of.append((source._modules, dict(source._modules)))
            below = {name: made[f"{path}.{name}"] for name in source._modules if f"{path}.{name}" in made}
            made[path] = _like(source, type(source), {**contents.get(path, source._modules), **below})
        self._overlay |= {path: module for path, module in made.items() if "." not in path}
        self.module = _like(root, type(root), {})
        self._seen: dict[str, Any] = {}
        self._left: dict[str, Any] = {}

    @property
    def stale(self) -> bool:
        """Whether a submodule has been put in the place of another since: an adapter's layer, or another block."""
        for now, then in self._made_of:  # noqa: SIM110 - on the way of every call: a generator costs more than the comparison
            if not _same(now, then):
                return True
        return False

    def __call__(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call in the place of ``original``.

        Raises:
            NoShadowError: somebody stands around the forward who would call ``root``'s.
        """
        if not _same(self._root.__dict__, self._seen):
            self._follow()
        call = getattr(self.module, original.entry)
        try:
            if original.compiling is None:
                return call(*args, **kwargs)
            return compiled(original.compiling, lambda: call(*args, **kwargs))
        finally:
            if not _same(self.module.__dict__, self._left):
                self._carry_over()

    def watched(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same with nothing compiled but what the blocks compile themselves."""
        self._follow()
        try:
            return uncompiled(original.compiling, lambda: getattr(self.module, original.entry)(*args, **kwargs))
        finally:
            self._carry_over()

    def _follow(self) -> None:
        """Be as ``root`` is now: its attributes and hooks change over time."""
        root, attributes = self._root.__dict__, self.module.__dict__
        forward = root.get("forward")
        if isinstance(forward, Patch):  # ours
            forward = forward.found
        if forward is not None:
            forward = self._rebound(forward)
        attributes.clear()
        attributes.update(without_ours(root))
        attributes.pop("forward", None)
        attributes["_modules"] = {**root["_modules"], **self._overlay}
        if forward is not None:
            attributes["forward"] = forward
        self._seen, self._left = dict(root), dict(attributes)

    def _rebound(self, forward: Any) -> Any:
        """An instance's own ``forward``, for the twin."""
        root = self._root
        bound = root.__dict__.get("_old_forward")
        if isinstance(forward, MethodType) and forward.__self__ is root:
            return MethodType(forward.__func__, self.module)
        if "_hf_hook" in root.__dict__ and isinstance(bound, MethodType) and bound.__self__ is root:
            return functools.partial(_hooked, root, MethodType(bound.__func__, self.module))
        raise NoShadowError

    def _carry_over(self) -> None:
        """What the forward has set is the module's."""
        root = self._root.__dict__
        for name, value in self.module.__dict__.items():
            if value is not self._left.get(name, self):
                root[name] = value
        self._seen = {}  # to follow it next time


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both hold the same objects; compares no contents."""
    return len(one) == len(other) and all(map(is_, one.values(), other.values()))


def _like(source: nn.Module, kind: type, modules: Mapping[str, Any]) -> nn.Module:
    twin: nn.Module = object.__new__(kind)
    twin.__dict__.update(source.__dict__)
    twin.__dict__["_modules"] = dict(modules)
    return twin


def _prefixes(path: str) -> Iterable[str]:
    parts = path.split(".") if path else []
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def _hooked(root: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Between the two halves of accelerate's hook on ``root`` (``accelerate.hooks.ModelHook``)."""
    hook: Any = root._hf_hook
    args, kwargs = hook.pre_forward(root, *args, **kwargs)
    if hook.no_grad:
        with torch.no_grad():
            result = forward(*args, **kwargs)
    else:
        result = forward(*args, **kwargs)
    return hook.post_forward(root, result)
