"""What the blocks returned in a call that computed, and what that tells of a stack where its layouts leave something open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, define, frozen

import torch
from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._pattern import BESIDE, BlockStates, Called, ForwardPattern, StatePositions
from torch import Tensor

_CLEARLY = 0.25
"""Of two readings of a block's result, one is believed if it is nearer by this factor in squared distance."""
Shapes = tuple[tuple[int, ...] | None, ...]


@frozen(eq=False)
class Returned:
    """A block's result: its type and the shapes in it. Holds no tensors."""

    kind: type
    shapes: Shapes
    """Shape of the tensor at each place, ``None`` where there was ``None``."""
    fields: tuple[str, ...]
    """For an output object: the names of its places."""
    given: Shapes
    """Shapes of the states the block was given."""
    floating: tuple[bool, ...] = ()
    """Whether each place holds numbers that can be ``nan``."""

    @classmethod
    def of(cls, result: Any, states: BlockStates) -> Returned | None:
        """Of a result; ``None`` if it is none that we could build."""
        places = places_of(result)
        if places is None or not all(p is None or isinstance(p, Tensor) for p in places):
            return None
        shapes = tuple(None if p is None else tuple(p.shape) for p in places)
        floating = tuple(p is not None and p.is_floating_point() for p in places)
        return cls(type(result), shapes, tuple(_fields(result)), states.shapes, floating)

    @property
    def bare(self) -> bool:
        """A tensor by itself."""
        return issubclass(self.kind, Tensor)

    def pattern(self, at: StatePositions, called: Called, *, free: bool = False) -> ForwardPattern | None:
        """How such a result is put together; ``None`` if the block returned its states in other shapes than it was given, or
        something beside them that is not of floating point.

        Args:
            at: where the states are in it.
            called: how the block was called.
            free: the hidden states may have come out in another shape.
        """
        if self.bare:
            return ForwardPattern(Tensor, (), *called) if free or self.shapes[0] == self.given[0] else None
        states = {place: state for state, place in enumerate(at) if place is not None}
        order = tuple(None if shape is None else states.get(place, BESIDE) for place, shape in enumerate(self.shapes))
        spread = False
        for state, shape, floating in zip(order, self.shapes, self.floating, strict=True):
            if state is None or (floating if state == BESIDE else shape == self.given[state] or (free and state == 0)):
                continue
            if state != 1 or not _spreads(self.given[1], shape):
                return None
            spread = True
        beside = {place: shape for place, shape in enumerate(self.shapes) if shape is not None and order[place] == BESIDE}
        return ForwardPattern(self.kind, order, *called, self.fields, spread, beside)

    def filled(self, hidden: Tensor) -> Any:
        """A result of this form that nobody will look at, made of ``hidden``; ``None`` if the shapes are others."""
        if tuple(hidden.shape) != self.given[0] or self.fields or any(s not in (None, self.given[0]) for s in self.shapes):
            return None
        return hidden if self.bare else self.kind([None if shape is None else hidden for shape in self.shapes])


def _spreads(given: Sequence[int] | None, returned: Sequence[int] | None) -> bool:
    """Whether one prompt was given for a batch of images, and the block returned it once an image."""
    if given is None or returned is None or given[0] != 1:
        return False
    return returned[0] > 1 and tuple(given[1:]) == tuple(returned[1:])


def places_of(result: Any) -> tuple[Any, ...] | None:
    """What a result is made of: itself, its items, or the fields of an output object; ``None`` if unknown."""
    if isinstance(result, Tensor):
        return (result,)
    if type(result) in (tuple, list):
        return tuple(result)
    names = _fields(result)
    return tuple(result[n] if isinstance(result, Mapping) else getattr(result, n) for n in names) or None


def _fields(result: Any) -> tuple[str, ...]:
    """Field names of an output object: the keys of a mapping, or ``sample`` with what stands beside it."""
    if isinstance(result, Mapping):
        return tuple(map(str, result))
    return tuple(vars(result)) if hasattr(result, "sample") and hasattr(result, "__dict__") else ()


@define
class ObservedLayout:
    """Where the states are in the blocks' results, by class of block, and where text stands among the tokens."""

    kinds: Sequence[type]
    """Class of each block."""
    positions: dict[type, StatePositions]
    returned: dict[int, Returned] = Factory(dict)
    """Per block that was called."""
    side: str | None = None
    """``"prefix"`` or ``"suffix"``: where the model concatenates text."""

    @classmethod
    def of(cls, kinds: Sequence[type], layouts: Sequence[Layout]) -> ObservedLayout:
        """What the layouts tell before any call."""
        told = [StatePositions(layout.result, layout.text_result, layout.second_result) for layout in layouts]
        return cls(kinds, dict(zip(kinds, told, strict=True)))

    def link(self, index: int, result: Any, states: BlockStates) -> None:
        """Block ``index`` returned ``result``, the next block was given ``states``: which is which?"""
        kind = self.kinds[index]
        known = list(self.positions[kind])
        for place, value in enumerate(places_of(result) or ()):
            # Once known it stays: a host that swaps two is caught by the shapes, not by a change of mind here.
            state = next((i for i, t in enumerate(states) if value is not None and value is t), None)
            if state is not None and known[state] is None:
                known[state] = place
        self.positions[kind] = StatePositions(*known)

    def position(self, index: int) -> StatePositions | None:
        """Where the states are in the result of block ``index``; ``None`` if it cannot be told of the hidden states."""
        returned = self.returned.get(index)
        if returned is None:
            return None
        if returned.bare:
            return StatePositions()
        kind = self.kinds[index]
        known = list(self.positions[kind])
        for other in (returned, *(r for i, r in self.returned.items() if i != index and self.kinds[i] is kind)):
            for state, at in enumerate(known):
                if at is None:
                    known[state] = _only(other, state, {place for place in known if place is not None})
        hidden = known[0]
        if hidden is None or hidden >= len(returned.shapes) or returned.shapes[hidden] is None:
            return None
        return StatePositions(*known)

    def lead(self, index: int) -> None:
        """The block is a whole model, and nothing in its result has the shape of what it takes: its first result is what it
        makes of that."""
        returned, kind = self.returned.get(index), self.kinds[index]
        if returned is None or returned.bare or self.position(index) is not None:
            return
        told = self.positions[kind]
        first = next((place for place, shape in enumerate(returned.shapes) if shape is not None and place not in told), None)
        self.positions[kind] = told._replace(hidden=first)

    def resemble(self, index: int, result: Any, states: BlockStates) -> None:
        """Block ``index``, after which none of its class came, returned two tensors of the shape of its hidden states, one of
        which may be the text, or something that it made itself: which is which?

        Blocks add to what they are given, so each result is near its own input. Where one reading is not clearly nearer than
        the other, nothing is told. Compares contents (and so waits for the device, once a kind of call).
        """
        returned, (hidden, text, second), places = self.returned.get(index), states, places_of(result) or ()
        if returned is None or self.position(index) is not None or hidden is None or second is not None:
            return
        free = [place for place, shape in enumerate(returned.shapes) if shape == returned.given[0]]
        if len(free) != 2:
            return
        told = (hidden, text) if text is not None and text.shape == hidden.shape else (hidden,)
        far = {
            order: sum(_apart(places[place], state) for place, state in zip(order, told, strict=True))
            for order in (tuple(free[: len(told)]), tuple(free[::-1][: len(told)]))
        }
        nearer, other = sorted(far, key=far.__getitem__)
        if far[nearer] < _CLEARLY * far[other]:
            self.positions[self.kinds[index]] = StatePositions(*nearer)

    def locate_text(self, index: int, result: Any, hidden: Tensor) -> None:
        """Block ``index`` returned ``result``, and the next block got ``hidden`` with text concatenated: on which side?

        Compares contents (and so waits for the device, once a kind of call): the image tokens are those of the result before,
        or, where the host added something to them in between, the text is that result's text.
        """
        at, places = self.position(index), places_of(result) or ()
        if at is None:
            return
        image = places[at.hidden or 0]
        found = {"suffix": _leads(hidden, image), "prefix": _trails(hidden, image)}
        if at.text is not None and not any(found.values()):
            text = places[at.text]
            found = {"prefix": _leads(hidden, text), "suffix": _trails(hidden, text)}
        if sum(found.values()) == 1:
            self.side = next(side for side, here in found.items() if here)


def _only(returned: Returned, state: int, taken: set[int]) -> int | None:
    """The one free place that has the state's shape, unless two different things have that shape."""
    wanted = returned.given[state]
    free = [place for place, shape in enumerate(returned.shapes) if shape is not None and place not in taken]
    fitting = [place for place in free if returned.shapes[place] == wanted]
    if returned.given.count(wanted) > 1 and len(free) > 1 and not taken:
        return None
    return fitting[0] if wanted is not None and len(fitting) == 1 else None


def _apart(one: Tensor, other: Tensor) -> float:
    """The squared distance of two tensors, over the size of the second."""
    here, there = one.detach().float(), other.detach().float()
    return float((here - there).square().sum() / there.square().sum().clamp_min(1e-12))


def _leads(whole: Tensor, part: Tensor | None) -> bool:
    return _can_hold(whole, part) and part is not None and torch.equal(whole[:, : part.shape[1]], part)


def _trails(whole: Tensor, part: Tensor | None) -> bool:
    return _can_hold(whole, part) and part is not None and torch.equal(whole[:, -part.shape[1] :], part)


def _can_hold(whole: Tensor, part: Tensor | None) -> bool:
    return (
        part is not None
        and part.ndim == whole.ndim == 3
        and 0 < part.shape[1] < whole.shape[1]
        and (part.shape[0], part.shape[2]) == (whole.shape[0], whole.shape[2])
        and part.dtype == whole.dtype
        and part.device == whole.device
    )
