"""What the first computed call of a kind has shown about all calls that look like it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import Factory, define, evolve

import torch
from magpolicy_torch.blocks._observed import Returned
from magpolicy_torch.blocks._pattern import ForwardPattern, Sources
from magpolicy_torch.evaluation._parts import StackIO
from torch import Tensor


@define(eq=False)
class CallSpec:
    """One kind of call. It holds no tensors, and no shapes that a skip would have to have again."""

    order: tuple[int, ...]
    """The blocks that ran."""
    patterns: Mapping[int, ForwardPattern]
    """How each of them is called."""
    side: str | None
    """Where text is concatenated, if that had to be found."""
    in_place: bool
    """Whether the model writes into its stack's input."""
    touched: frozenset[int]
    """Blocks before which something happens to their states."""
    branches: Mapping[int, tuple[Sources, Returned]]
    """How the modules beside the stack are called, and what they return."""
    observed: bool = True
    """Whether a call of this kind was; or else the spec is that of another kind, which skips go by until one is."""
    route: str | None = None
    """How skips are made, once one was: see :mod:`magpolicy_torch.evaluation._mounts`."""
    copies_text: bool = True
    """Whether a skip by the short route has to hand on a copy of the text: the model may write to it behind the blocks."""
    idle: list[Mounts] = Factory(list)
    """What calls of this kind are mounted with, where it is not in use."""

    def for_another_kind(self) -> CallSpec:
        """The same, for calls that were not observed yet."""
        return evolve(self, observed=False, route=None, idle=[])

    @contextmanager
    def mounts(self) -> Iterator[Mounts]:
        """For one call. They are kept: what was compiled is to be the same again."""
        try:
            mounts = self.idle.pop()  # atomic, as append is
        except IndexError:
            mounts = Mounts()
        try:
            yield mounts
        finally:
            mounts.io.clear()
            self.idle.append(mounts)


@define(eq=False)
class Mounts:
    """Parts of one kind of call, mounted; for one call at a time."""

    io: StackIO = Factory(StackIO)
    made: dict[tuple[str, str], Any] = Factory(dict)
    """By what they do, and how they are mounted."""


def kind_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What makes a call one of its kind: shapes, switches, and which of the optional arguments are given; no contents."""
    return (
        torch.is_inference_mode_enabled(),
        _shown(args) if args else (),
        *kwargs,
        *[(v.shape, v.dtype, v.device) if isinstance(v, Tensor) else _shown(v) for v in kwargs.values()],
    )


def _shown(value: Any) -> Any:
    """What of an argument makes the call one of its kind."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple([(key, _shown(item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return tuple(map(_shown, value))
    return value if value is None or isinstance(value, bool | int | str) else type(value)


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
