"""Modules outside of the stack of which nothing comes on a skip: what they give goes into the blocks alone.

Rotary tables, embedders of the text: on a skip nobody looks at their results. Which they are is found by trying, on the first
skip of a kind: all of them give tensors that say who made them as soon as anybody uses them, and whoever is named does run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from magpolicy_torch._parts import Part
from magpolicy_torch._twin import Home
from torch import Tensor, nn

_DEPTH = 2  # below the model: an embedder of three things, one of them the text


class UsedError(Exception):
    """Somebody uses the result of an :class:`Unused` module."""

    def __init__(self, by: Unused) -> None:
        super().__init__(f"the result of {type(by.shown).__name__} is used")
        self.by = by


class Blank(Tensor):
    """In the place of a tensor that nobody looks at; any use raises :class:`UsedError`. Passing it on, or a copy, is none."""

    by: Unused

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:
            return args[0]
        raise UsedError(blanks((args, kwargs))[0].by)


class Unused(Part):
    """In the place of a module, whose attributes it shows. The first call runs it, all others give blanks in the same form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.gives: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.gives is not None:
            return self.gives
        result = self.shown(*args, **kwargs)
        self.gives = _blanked(result, self)
        return result


def find_unused(
    root: nn.Module, blocks: set[nn.Module], attempt: Callable[[Mapping[Home, nn.Module]], bool]
) -> frozenset[Home]:
    """Where the modules outside of ``blocks`` are that a skip can do without.

    Args:
        attempt: makes the skip with these in the place of modules, and says whether it gave the same bits.
    """
    tried = _below(root, "", blocks)
    settled = False
    while tried:
        new = [part for part in tried.values() if part.gives is None]
        try:
            if not attempt(tried):
                break
            # Those that are not called, or give no tensor (they may be there for something else), stay as they are.
            tried = {home: part for home, part in tried.items() if blanks(part.gives)}
            settled = not new
        except UsedError as used:
            home = next(home for home, part in tried.items() if part is used.by)
            del tried[home]
            path = f"{home.path}.{home.name}".lstrip(".")
            if path.count(".") + 1 < _DEPTH:
                tried |= _below(used.by.shown, path, blocks)
        if settled:
            return frozenset(tried)
    return frozenset()


def _below(module: nn.Module, path: str, blocks: set[nn.Module]) -> dict[Home, Unused]:
    """The children of a module that could be left out."""
    lists = (nn.ModuleList, nn.ModuleDict)
    children = {name: child for name, child in module.named_children() if not isinstance(child, lists)}
    return {Home(path, name): Unused(child) for name, child in children.items() if blocks.isdisjoint(child.modules())}


def _blanked(value: Any, by: Unused) -> Any:
    """``value`` with a blank for each tensor in it."""
    if isinstance(value, Tensor):
        blank = torch.Tensor._make_subclass(Blank, torch.empty(0))
        blank.by = by
        return blank
    if type(value) in (list, tuple):
        return type(value)(_blanked(item, by) for item in value)
    if type(value) is dict:
        return {key: _blanked(item, by) for key, item in value.items()}
    return value


def blanks(value: Any) -> list[Blank]:
    """Those in a result, or among arguments."""
    if isinstance(value, Blank):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [blank for item in items for blank in blanks(item)]
