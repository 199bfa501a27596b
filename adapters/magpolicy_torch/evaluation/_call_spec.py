"""What the first computed call of a kind has shown about all calls that look like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, define, frozen

import torch
from magpolicy_torch.blocks._layout import ObservedLayout
from magpolicy_torch.evaluation._call import Call
from magpolicy_torch.evaluation._stack_parts import Build, Read
from torch import Tensor


@frozen
class TensorSpec:
    """Says what a tensor is like, and holds none."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def shared(self, count: int, dim: int) -> list[TensorSpec]:
        """Like ``count`` equal parts of it along ``dim``."""
        shape = list(self.shape)
        shape[dim] //= count
        return [TensorSpec(torch.Size(shape), self.dtype, self.device)] * count


@define(eq=False)
class CallSpec:
    """One kind of call, understood."""

    learned: ObservedLayout
    reads: tuple[Read, ...]
    builds: tuple[Build, ...]
    image: TensorSpec
    """What goes into the stack: its image tokens."""
    also: TensorSpec | None
    touched: frozenset[int]
    """Blocks before which something happens."""
    _shares: list[TensorSpec] | None = None
    skipping: str | None = None
    """One of the :data:`WAYS`, or ``"watched"``; ``None``: not tried out yet."""
    idle: list[Any] = Factory(list)
    """Twins for calls of this kind that are not in use."""

    def entered(self, image: Tensor) -> None:
        """``image`` went into the stack just now: autocast or another device may make another tensor of the same arguments."""
        if image.dtype != self.image.dtype or image.device != self.image.device or image.shape != self.image.shape:
            self.image, self._shares = TensorSpec.of(image), None

    def shares(self, count: int, batch: int) -> list[TensorSpec]:
        """What each of ``count`` streams has in it."""
        if self._shares is None:
            self._shares = self.image.shared(count, batch)
        return self._shares

    @classmethod
    def of(cls, call: Call) -> CallSpec | None:
        """What a computed call showed; ``None`` if it left blocks out, or gives more than a part can build."""
        learned, count = call.learned, len(call.stack)
        if call.order != list(range(count)) or set(call.sources) != set(range(count)) or call.entered is None:
            return None
        reads = tuple(Read(call.sources[i][0]) for i in range(count))
        builds = [Build.of(learned.forms[i], learned.settled[i]) for i in range(count)]
        if any(read.sources[0] is None for read in reads) or any(build is None for build in builds):
            return None
        before, also = call.entered
        found = tuple(build for build in builds if build is not None)
        return cls(
            learned, reads, found, TensorSpec.of(before), None if also is None else TensorSpec.of(also), frozenset(call.touched)
        )


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


def shown(value: Any) -> Any:
    """What of an argument makes the call one of its kind."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, shown(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(shown, value))
    return value if value is None or isinstance(value, bool | int | str) else type(value)
