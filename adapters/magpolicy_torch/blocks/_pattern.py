"""How one block is called and what it returns; holds no tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from attrs import Factory, frozen

from magpolicy_torch.blocks._layout import Layout, parameters_of
from torch import Tensor

Argument = str | int
"""Where the host passes something: by which name, or at which position."""
Source = Argument | tuple[Argument, int] | None
"""The argument that is it, or one that is a pair, and which of the two."""
Sources = tuple[Source, Source, Source]
BESIDE = -1
"""In place of the index of a state: something that a block returns beside its states."""
Switches = tuple[tuple[str, Any], ...]
Called = tuple[Sources, Switches, int]


class BlockStates(NamedTuple):
    """The tensors that go through the blocks."""

    hidden: Tensor | None
    text: Tensor | None = None
    second: Tensor | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Their shapes."""
        return tuple(None if t is None else tuple(t.shape) for t in self)


class StatePositions(NamedTuple):
    """Index of each state in a tuple result."""

    hidden: int | None = None
    text: int | None = None
    second: int | None = None


class Arguments:
    """Finds a block's states among its arguments, however the host passes them."""

    def __init__(self, layout: Layout, forward: Callable[..., Any]) -> None:
        names = list(parameters_of(forward))
        self._places = [_place(where, names) for where in (layout.hidden, layout.text, layout.second_stream)]

    def called(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Called:
        """Where the host passes each state, ``None`` for what is no tensor here; its switches, and how many names it gives."""
        hidden, text, second = (_source(place, args, kwargs) for place in self._places)
        if hidden is None and (pair := _argument(self._places[0], args, kwargs, _is_pair)) is not None:
            hidden, second = (pair, 0), (pair, 1)  # video and audio in one argument
        return (hidden, text, second), switches(kwargs), len(kwargs)


def _place(where: str | int | None, names: Sequence[str]) -> tuple[int | None, str | None]:
    """Position and name of an argument, as far as each is known."""
    if where is None:
        return None, None
    if isinstance(where, int):
        return where, names[where] if where < len(names) else None
    return names.index(where) if where in names else None, where


def _source(place: tuple[int | None, str | None], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Source:
    plain = _argument(place, args, kwargs, lambda value: isinstance(value, Tensor))
    if plain is not None:
        return plain
    found = _argument(place, args, kwargs, _is_with_nothing)
    return None if found is None else (found, 0)


def _argument(
    place: tuple[int | None, str | None], args: Sequence[Any], kwargs: Mapping[str, Any], fits: Callable[[Any], bool]
) -> Argument | None:
    """Where the host passes what fits; ``None`` if it does not."""
    position, name = place
    if name is not None and fits(kwargs.get(name)):
        return name
    return position if position is not None and position < len(args) and fits(args[position]) else None


def _is_with_nothing(value: Any) -> bool:
    """A tensor as linear layers of vLLM return it: with the bias that they did not add, which is none."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor) and value[1] is None


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, Tensor) for item in value)


def switches(kwargs: Mapping[str, Any]) -> Switches:
    """The arguments that are plain switches, in a fixed order: another value may mean another form of result."""
    return tuple(sorted([(k, v) for k, v in kwargs.items() if isinstance(v, (bool, str))]))


@frozen(eq=False)
class ForwardPattern:
    """How one block is called, and how its result is put together."""

    kind: type
    """Type of its result."""
    order: tuple[int | None, ...]
    """Which state is at each place of the result, ``None`` for none, ``BESIDE`` for something else. Empty: the result is a
    tensor by itself."""
    sources: Sources
    """Where its states are among its arguments."""
    switches: Switches
    arguments: int
    """Number of its keyword arguments."""
    fields: tuple[str, ...] = ()
    """For an output object: the names of its places."""
    spread: bool = False
    """One prompt goes in for a batch of images, and comes out once an image."""
    beside: Mapping[int, tuple[int, ...]] = Factory(dict)
    """By place of the result, the shape of what is returned beside the states."""
