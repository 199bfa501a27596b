"""A shadow of a module: the same attributes, parameters and code, with other modules in the place of its blocks."""

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


@frozen
class ModulePath:
    """Where a block is kept."""

    path: str
    """Of the module that holds it, from the root; a ``ModuleList`` most often."""
    name: str
    """Under which it is held there."""


def module_paths(root: nn.Module, blocks: Sequence[nn.Module]) -> tuple[tuple[ModulePath, int], ...] | None:
    """Where blocks are kept below ``root``, each with its index; ``None`` if one is kept nowhere.

    A block that stands several times among ``blocks`` has to be kept as often, in that order; any other may be kept twice.
    """
    indices: dict[int, list[int]] = {}
    for index, block in enumerate(blocks):
        indices.setdefault(id(block), []).append(index)
    paths: dict[int, list[ModulePath]] = {key: [] for key in indices}
    for path, holder in root.named_modules(remove_duplicate=False):
        for name, child in holder._modules.items():
            if id(child) in paths:
                paths[id(child)].append(ModulePath(path, name))
    found: list[tuple[ModulePath, int]] = []
    for key, kept in paths.items():
        wanted = indices[key]
        if not kept or (len(wanted) > 1 and len(wanted) != len(kept)):
            return None
        found += zip(kept, wanted if len(wanted) > 1 else wanted * len(kept), strict=True)
    return tuple(sorted(found, key=lambda item: item[1]))


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
            made[path] = _like(source, {**contents.get(path, source._modules), **below})
        self._overlay |= {path: module for path, module in made.items() if "." not in path}
        self.module = _like(root, {})
        self._seen: dict[str, Any] = {}
        self._left: dict[str, Any] = {}

    @property
    def stale(self) -> bool:
        """Whether it has to be made anew: a submodule was put in the place of another (an adapter's layer, another block), or
        somebody stands around the forward by now."""
        if not _same(self._root.__dict__, self._seen) and not self.can_follow(self._root):
            return True
        for now, then in self._made_of:  # noqa: SIM110 - on the way of every call: a generator costs more than the comparison
            if not _same(now, then):
                return True
        return False

    def __call__(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call in the place of ``original``. Possible where :meth:`can_follow` says so."""
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

    def eager(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same with nothing compiled but what the blocks compile themselves."""
        self._follow()
        try:
            return uncompiled(original.compiling, lambda: getattr(self.module, original.entry)(*args, **kwargs))
        finally:
            self._carry_over()

    @staticmethod
    def can_follow(root: nn.Module) -> bool:
        """Whether a shadow can be called: not if somebody stands around the forward, or a method that it calls, who would call
        ``root``'s."""
        forward = _own_forward(root)
        if forward is not None and _for(root, root, forward) is None:
            return False
        return all(_is_method_of(root, value) for _, value in _own_methods(root))

    def _follow(self) -> None:
        """Be as ``root`` is now: its attributes and hooks change over time."""
        root, attributes = self._root.__dict__, self.module.__dict__
        attributes.clear()
        attributes.update(without_ours(root))
        attributes.pop("forward", None)
        attributes["_modules"] = {**root["_modules"], **self._overlay}
        forward = _own_forward(self._root)
        if forward is not None:
            attributes["forward"] = _for(self.module, self._root, forward)
        for name, method in _own_methods(self._root):
            attributes[name] = MethodType(method.__func__, self.module)
        self._seen, self._left = dict(root), dict(attributes)

    def _carry_over(self) -> None:
        """What the forward has set is the module's."""
        root = self._root.__dict__
        for name, value in self.module.__dict__.items():
            if value is not self._left.get(name, self):
                root[name] = value
        self._seen = {}  # to follow it next time


def _own_forward(root: nn.Module) -> Any:
    """The forward that was set on the instance, if one was; not by us."""
    forward = root.__dict__.get("forward")
    return forward.found if isinstance(forward, Patch) else forward


def _own_methods(root: nn.Module) -> list[tuple[str, Any]]:
    """Methods of the model's class, beside the forward, in whose place something was set on the instance."""
    mine = [(name, value) for name, value in root.__dict__.items() if callable(value) and not isinstance(value, Patch)]
    return [(name, value) for name, value in mine if not hasattr(nn.Module, name) and callable(getattr(type(root), name, None))]


def _is_method_of(root: nn.Module, value: Any) -> bool:
    return isinstance(value, MethodType) and value.__self__ is root


def _for(module: nn.Module, root: nn.Module, forward: Any) -> Any:
    """``forward``, which was set on ``root``, for ``module``; ``None`` if there is no telling how to make it."""
    bound = root.__dict__.get("_old_forward")
    if _is_method_of(root, forward):
        return MethodType(forward.__func__, module)
    if "_hf_hook" in root.__dict__ and isinstance(bound, MethodType) and bound.__self__ is root:
        return functools.partial(_hooked, root, MethodType(bound.__func__, module))
    return None


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both hold the same objects; compares no contents."""
    return len(one) == len(other) and all(map(is_, one.values(), other.values()))


def _like(source: nn.Module, modules: Mapping[str, Any]) -> nn.Module:
    shadow: nn.Module = object.__new__(type(source))
    shadow.__dict__.update(source.__dict__)
    shadow.__dict__["_modules"] = dict(modules)
    return shadow


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
