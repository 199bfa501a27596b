"""Modules outside of the stack of which nothing comes on a skip: what they give goes into the blocks alone.

Rotary tables, embedders of the text: on a skip nobody looks at their results. Which they are is found by trying, on the first
skip of a kind: all of them give tensors that say who made them as soon as anybody uses them, and whoever is named does run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import torch
from magpolicy_torch.evaluation._call_spec import shown
from magpolicy_torch.evaluation._shadow import ModulePath
from magpolicy_torch.evaluation._stack_parts import Part
from torch import Tensor, nn

_DEVICES = (torch.device, str, int)
_DEPTH = 2  # an embedder of three things, one of them the text


class UsedError(Exception):
    """Somebody uses the result of an :class:`Unused` module."""

    def __init__(self, by: Unused) -> None:
        super().__init__(f"the result of {type(by.shown).__name__} is used")
        self.by = by


class Blank(Tensor):
    """In the place of a tensor that nobody looks at. It has a shape, a dtype and a device, and what is made of blanks alone is
    blank. To ask for its contents, or to bring it together with another tensor, raises :class:`UsedError`.
    """

    by: Unused
    sized: torch.Size
    typed: torch.dtype
    at: torch.device

    @classmethod
    def like(cls, tensor: Tensor, by: Unused, at: torch.device) -> Blank:
        """A blank of that shape and dtype, on the device ``at``."""
        meta = tensor.detach().to("meta")
        found = meta.as_subclass(cls)
        found.by, found.sized, found.typed, found.at = by, meta.shape, meta.dtype, at
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = _TOLD.get(func)
        if told is not None:
            return getattr(args[0], told)
        if func is Tensor.clone:
            return args[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        blank = next(leaf for leaf in given if type(leaf) is Blank)
        try:
            with DisableTorchFunctionSubclass():
                if func is Tensor.to:
                    return _converted(blank, [*args[1:], *(kwargs or {}).values()])
                if all(type(leaf) is Blank for leaf in given):
                    result = func(*args, **(kwargs or {}))
                    return tree_map_only(Tensor, partial(cls.like, by=blank.by, at=blank.at), result)
        except Exception as error:  # the meta device has no contents
            raise UsedError(blank.by) from error
        raise UsedError(blank.by)


# The getters of what is asked for most often.
_TOLD = {
    Tensor.shape.__get__: "sized",  # type: ignore[attr-defined]
    Tensor.dtype.__get__: "typed",  # type: ignore[attr-defined]
    Tensor.device.__get__: "at",
}


def _converted(blank: Blank, to: Sequence[Any]) -> Blank:
    """As ``Tensor.to``, whose arguments name a dtype, a device, or a tensor that has both."""
    dtype, at = blank.typed, blank.at
    for value in to:
        dtype = value if isinstance(value, torch.dtype) else value.dtype if isinstance(value, Tensor) else dtype
        at = value.device if isinstance(value, Tensor) else torch.device(value) if type(value) in _DEVICES else at
    return Blank.like(blank.to(dtype), blank.by, at)


class Unused(Part):
    """In the place of a module, whose attributes it shows. The first time that it is given something of a kind the module runs;
    from then on there are blanks in the same form.
    """

    def __init__(self, module: nn.Module, depth: int = 1) -> None:
        super().__init__(module, inside=True)  # hosts ask such modules for the dtype of their parameters
        self.depth = depth
        self.runs = False
        """Whether it runs whatever it is given."""
        self.gives: dict[Any, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kind = (*kwargs, *[(v.shape, v.dtype) if isinstance(v, Tensor) else shown(v) for v in (*args, *kwargs.values())])
        if kind in self.gives and not self.runs:
            return self.gives[kind]
        result = self.shown(*args, **kwargs)
        self.gives[kind] = tree_map_only(Tensor, lambda tensor: Blank.like(tensor, self, tensor.device), result)
        return result

    @property
    def spares(self) -> bool:
        """Whether anything is saved: it is called, and gives tensors. What gives none is there for something else."""
        return bool(self.gives) and all(map(blanks, self.gives.values()))


Attempt = Callable[[Mapping[ModulePath, nn.Module]], bool]


def find_unused(
    root: nn.Module, blocks: set[nn.Module], attempt: Attempt, *, guess: frozenset[ModulePath] = frozenset()
) -> frozenset[ModulePath]:
    """Where the modules outside of ``blocks`` are that a skip can do without.

    Args:
        attempt: makes the skip with these in the place of modules, and says whether it gave the same bits.
        guess: where they are in calls of another kind; looking at these alone is quicker.
    """
    return _narrowed(in_place(root, guess), blocks, attempt) or _narrowed(_below(root, "", blocks), blocks, attempt)


def in_place(root: nn.Module, homes: frozenset[ModulePath]) -> dict[ModulePath, Unused]:
    """What stands in the place of these modules, as far as they are still there."""
    modules = dict(root.named_modules(remove_duplicate=False)) if homes else {}
    return {home: Unused(modules[home.inside], _DEPTH) for home in homes if home.inside in modules}


def _narrowed(tried: dict[ModulePath, Unused], blocks: set[nn.Module], attempt: Attempt) -> frozenset[ModulePath]:
    """Those of ``tried``, or in them, that a skip can do without."""
    new = True
    while tried:
        for part in tried.values():
            part.runs = new  # once, to see what they give
        try:
            same = attempt(tried)
        except UsedError as used:
            home = next(home for home, part in tried.items() if part is used.by)
            del tried[home]
            children = _below(used.by.shown, home.inside, blocks, used.by.depth + 1) if used.by.depth < _DEPTH else {}
            tried, new = tried | children, bool(children)
            continue
        if not same:
            break
        if not new:
            return frozenset(tried)
        tried, new = {home: part for home, part in tried.items() if part.spares}, False
    return frozenset()


@contextlib.contextmanager
def keeping_none(attributes: dict[str, Any], args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """A call for trial, with these arguments in containers of its own: no blank is to stay in them, nor among the model's
    ``attributes``. If one does, it is taken out, and used.

    Raises:
        UsedError: the forward has kept a blank for later.
    """
    before, given = dict(attributes), tree_map(lambda leaf: leaf, (args, kwargs))
    try:
        yield given
    finally:
        kept = {name: value for name, value in attributes.items() if value is not before.get(name) and blanks(value)}
        for name in kept:
            attributes.pop(name)
            attributes.update({name: before[name]} if name in before else {})
    found = next((leaf for leaf in tree_leaves((list(kept.values()), given)) if type(leaf) is Blank), None)
    if found is not None:
        raise UsedError(found.by)


def _below(module: nn.Module, path: str, blocks: set[nn.Module], depth: int = 1) -> dict[ModulePath, Unused]:
    """The children of a module that could be left out; of one that holds the stack, its own children."""
    found: dict[ModulePath, Unused] = {}
    for name, child in module.named_children():
        home = ModulePath(path, name)
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or child in blocks:
            continue
        if blocks.isdisjoint(child.modules()):
            found[home] = Unused(child, depth)
        else:
            found |= _below(child, home.inside, blocks, depth)
    return found


def blanks(value: Any) -> bool:
    """Whether a result holds any."""
    if type(value) is tuple and len(value) == 1:  # as models return it most often
        return type(value[0]) is Blank
    return any(type(leaf) is Blank for leaf in tree_leaves(value))
