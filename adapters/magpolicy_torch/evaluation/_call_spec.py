"""What the first computed call of a kind has shown about all calls that look like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, define, evolve

import torch
from magpolicy_torch.blocks._entry import Entry
from magpolicy_torch.blocks._observed import Returned
from magpolicy_torch.blocks._pattern import ForwardPattern, Sources
from magpolicy_torch.evaluation._parts import StackIO
from magpolicy_torch.residuals._arithmetic import Base
from torch import Tensor


@define(eq=False)
class CallSpec:
    """One kind of call. It holds no tensors."""

    order: tuple[int, ...]
    """The blocks that ran."""
    patterns: Mapping[int, ForwardPattern]
    """How each of them is called."""
    side: str | None
    """Where text is concatenated, if that had to be found."""
    in_place: bool
    """Whether the model writes into what enters its stack, or behind the stack into what leaves it."""
    touched: frozenset[int]
    """Blocks before which something happens to their states."""
    branches: Mapping[int, tuple[Sources, Returned]]
    """How the modules beside the stack are called, and what they return."""
    entry: Entry | None = None
    """What changes the arguments of the first block before its own forward has them."""
    bases: tuple[Base | None, Base | None] = (None, None)
    """What the residuals of the hidden states and of the second stream are counted from, where that is not what enters."""
    images: set[tuple[torch.Size, torch.dtype, torch.device]] = Factory(set)
    """What the image tokens that leave the stack looked like in such calls: what a residual has to look like. More than one
    where a mask among the arguments, and not their shapes, says how many tokens of text there are."""
    observed: bool = True
    """Whether a call of this kind was; or else the spec is that of another kind, which skips go by until one is."""
    route: str | None = None
    """How skips are made, once one was: see :mod:`magpolicy_torch.evaluation._mounts`."""
    copies_text: bool = True
    """Whether a skip by the short route has to hand on a copy of the text: the model may write to it behind the blocks."""
    idle: list[Mounts] = Factory(list)
    """What calls of this kind are mounted with, while not in use. It is kept: what was compiled is to be the same again."""

    def for_another_kind(self, entry: Entry | None) -> CallSpec:
        """The same, for calls that were not observed yet."""
        return evolve(self, entry=entry, images=set(), observed=False, route=None, idle=[])


@define(eq=False)
class Mounts:
    """Parts of one kind of call, mounted; for one call at a time."""

    io: StackIO = Factory(StackIO)
    made: dict[str, Any] = Factory(dict)
    """By what they do."""


def holds_nan(value: Any) -> bool:
    """Whether some tensor in the result of a model holds ``nan``."""
    if isinstance(value, Tensor):
        return bool(value.isnan().any())
    if isinstance(value, Mapping):
        return any(map(holds_nan, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_nan, value))
    return hasattr(value, "__dict__") and holds_nan(vars(value))


def same(one: Any, other: Any) -> bool:
    """Whether two results of a model hold the same bits."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__dict__") and type(one) is type(other):
        return same(vars(one), vars(other))
    return bool(one is other or (type(one) is type(other) and one == other))
