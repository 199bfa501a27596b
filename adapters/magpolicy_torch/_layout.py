"""Where hidden states sit in a block's arguments and in its result.

:class:`Layout` is the description a person can give. What it leaves open is found on the first computed call of a run:
:class:`Form` is the result one block returned there, and :class:`Learned` what all of them say together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import Factory, define, evolve, frozen

import torch
from magpolicy import AdapterError
from torch import Tensor

HIDDEN_NAMES = (
    "hidden_states", "x", "img", "image", "latent", "latents", "sample", "hidden", "visual_embed", "vis", "h",
)  # fmt: skip
TEXT_NAMES = ("encoder_hidden_states", "txt", "text", "context", "text_embed", "encoder_hidden", "ctx")

Tokens = int | Literal["auto"]


@frozen
class Layout:
    """Where one class of blocks takes and returns hidden states.

    ``None`` in ``text``, ``result`` and ``text_result`` leaves it to be found on the first computed call of a run.
    Hidden states are ``(batch, tokens, channels)``; other shapes work where no text is concatenated to them.
    """

    hidden: str | int
    """Argument that holds the hidden states: its name, or its position."""
    text: str | int | None = None
    """Argument that holds the text, where the block returns the text too."""
    result: int | None = None
    """Index of the hidden states in a tuple result. A bare tensor result needs none."""
    text_result: int | None = None
    """Index of the text in a tuple result."""
    prefix: Tokens = "auto"
    """Text tokens concatenated before the image tokens. ``"auto"``: what is more than the stack's input, if they come
    first; where neither ``prefix`` nor ``suffix`` is a number, the first computed call tells which of the two it is."""
    suffix: Tokens = "auto"
    """Text tokens concatenated after the image tokens."""

    @classmethod
    def of(cls, forward: Callable[..., Any], name: str, *, first: bool = False) -> Layout:
        """The layout told by the argument names of ``forward``; ``first`` accepts any name for the first argument.

        Raises:
            AdapterError: no argument can be told to be the hidden states; ``name`` says whose forward it is.
        """
        parameters = _parameters(forward)
        hidden = next((p for p in HIDDEN_NAMES if p in parameters), None)
        if hidden is None and parameters:
            needed = [n for n, p in parameters.items() if p.default is p.empty]
            if len(needed) == 1 or (first and needed):
                hidden = needed[0]
        if hidden is None:
            raise AdapterError(
                f"{name}.forward({', '.join(parameters) or '*args'}) does not tell which argument holds the hidden "
                "states; try blocks=BlockStack([...], layout=Layout(hidden=0))"
            )
        return cls(hidden, next((p for p in TEXT_NAMES if p in parameters), None))

    @property
    def open(self) -> bool:
        """Nothing is said about concatenated text."""
        return self.prefix == "auto" and self.suffix == "auto"

    def front_back(self, extra: int, side: str | None) -> tuple[int, int] | None:
        """Text tokens in front and behind, of ``extra`` in all; ``side`` says where undescribed ones are.

        ``None`` when that cannot be told or does not add up.
        """
        front, back = self.prefix, self.suffix
        if front == "auto" and back == "auto":
            if extra and side is None:
                return None
            return (extra, 0) if side == "prefix" else (0, extra)
        if front == "auto":
            front = extra - int(back)
        if back == "auto":
            back = extra - front
        return (front, back) if front >= 0 and back >= 0 and front + back == extra else None


def _parameters(forward: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in signature.parameters.items() if p.kind not in variable}


class Arguments:
    """Reads one argument of a call to a block, however the host passes it."""

    def __init__(self, layout: Layout, forward: Callable[..., Any]) -> None:
        names = list(_parameters(forward))
        self._hidden = _access(layout.hidden, names)
        self._text = None if layout.text is None else _access(layout.text, names)

    def hidden(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The hidden states, or ``None`` if there is no such tensor among the arguments."""
        return _read(self._hidden, args, kwargs)

    def text(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The text, or ``None``."""
        return None if self._text is None else _read(self._text, args, kwargs)


_Access = tuple[int | None, str | None]


def _access(where: str | int, names: Sequence[str]) -> _Access:
    """Position and name of an argument, as far as each is known."""
    if isinstance(where, int):
        return where, names[where] if where < len(names) else None
    return names.index(where) if where in names else None, where


def _read(access: _Access, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    position, name = access
    value = kwargs.get(name) if name is not None and name in kwargs else None
    if value is None and position is not None and position < len(args):
        value = args[position]
    return value if isinstance(value, Tensor) else None


@frozen(eq=False)
class Form:
    """The form of a result: its type and what stood at each place. Holds shapes, never tensors."""

    kind: type
    shapes: tuple[tuple[int, ...] | None, ...]
    """Shape of the tensor at each place, ``None`` where there was ``None``."""
    fields: tuple[str, ...] = ()
    """For an output object: the names of its places."""
    hidden_shape: tuple[int, ...] = ()
    text_shape: tuple[int, ...] | None = None
    flags: tuple[tuple[str, Any], ...] = ()
    """Switches among the arguments (``return_dict=False``): another value may mean another form."""

    @classmethod
    def of(cls, result: Any, hidden: Tensor, text: Tensor | None, kwargs: Mapping[str, Any]) -> Form | None:
        """The form of ``result``, or ``None`` if it is none we could build."""
        places = places_of(result)
        if places is None or not all(p is None or isinstance(p, Tensor) for p in places):
            return None
        return cls(
            type(result),
            tuple(None if p is None else tuple(p.shape) for p in places),
            tuple(_fields(result)),
            tuple(hidden.shape),
            None if text is None else tuple(text.shape),
            flags(kwargs),
        )

    @property
    def bare(self) -> bool:
        """A tensor by itself."""
        return issubclass(self.kind, Tensor)

    def passes(self, at: Place) -> bool:
        """Whether the block returned its hidden states (and text) in the shapes it was given, and nothing else."""
        if self.bare:
            return self.shapes[0] == self.hidden_shape
        wanted = {at.hidden: self.hidden_shape, at.text: self.text_shape}
        return all(shape is None or wanted.get(k) == shape for k, shape in enumerate(self.shapes))

    def build(self, at: Place, hidden: Tensor, text: Tensor | None) -> Any:
        """A result of this form; ``None`` if it has a place that neither ``hidden`` nor ``text`` fills."""
        if self.bare:
            return hidden
        values: list[Tensor | None] = [None] * len(self.shapes)
        for index, shape in enumerate(self.shapes):
            if shape is not None:
                values[index] = hidden if index == at.hidden else text if index == at.text else None
                if values[index] is None:
                    return None
        if self.fields:
            return self.kind(**{f: v for f, v in zip(self.fields, values, strict=True) if v is not None})
        return self.kind(values)


def flags(kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The arguments that are plain switches, in a fixed order."""
    return tuple(sorted((k, v) for k, v in kwargs.items() if isinstance(v, (bool, str))))


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


@frozen
class Place:
    """Index of hidden states and text in a tuple result."""

    hidden: int | None = None
    text: int | None = None


@define
class Learned:
    """What the computed calls of a run showed about a stack. Places are per class of block, forms per block."""

    places: dict[type, Place] = Factory(dict)
    forms: dict[int, Form] = Factory(dict)
    kinds: dict[int, type] = Factory(dict)
    side: str | None = None
    """``"prefix"`` or ``"suffix"``: where the model concatenates text."""
    in_place: bool | None = None
    """Whether the model writes into its stack input; ``None`` until a call has shown it."""
    seen: dict[str, tuple[int, ...]] = Factory(dict)
    """Per stream, the blocks that ran in the call whose residual is stored."""

    settled: dict[int, Place] = Factory(dict)
    """Per block, where things are in its result, once a computed call has been understood."""

    @classmethod
    def of(cls, kinds: Sequence[type], layouts: Sequence[Layout]) -> Learned:
        """What the layouts tell before any call."""
        places = {kind: Place(lay.result, lay.text_result) for kind, lay in zip(kinds, layouts, strict=True)}
        return cls(places, kinds=dict(enumerate(kinds)))

    def settle(self, order: Sequence[int]) -> bool:
        """Fix the places of the blocks called, in ``order``; False if one of them returned what a skip cannot build."""
        for index in order:
            place, form = self.place(index), self.forms[index]
            if place is None or not form.passes(place):
                return False
            self.settled[index] = place
        return True

    def link(self, index: int, result: Any, hidden: Tensor, text: Tensor | None) -> None:
        """Block ``index`` returned ``result``, the next block was given ``hidden`` and ``text``: which is which?"""
        places = places_of(result) or ()
        kind = self.kinds[index]
        known = self.places[kind]
        for k, place in enumerate(places):
            # Once known it stays: a host that swaps the two is caught by the shapes, not by a change of mind here.
            if place is not None and place is hidden and known.hidden is None:
                known = evolve(known, hidden=k)
            elif place is not None and place is text and known.text is None:
                known = evolve(known, text=k)
        self.places[kind] = known

    def place(self, index: int) -> Place | None:
        """Where hidden states (and text) are in the result of block ``index``; ``None`` if it cannot be told."""
        form = self.forms.get(index)
        if form is None:
            return None
        if form.bare:
            return Place()
        kind = self.kinds[index]
        known = self.places[kind]
        hidden, text = known.hidden, known.text
        for other in (form, *(f for i, f in self.forms.items() if i != index and self.kinds[i] is kind)):
            if hidden is None:
                hidden = _only(other.shapes, text, other.hidden_shape, other.text_shape)
            if text is None:
                text = _only(other.shapes, hidden, other.text_shape, other.hidden_shape)
        if hidden is None or hidden >= len(form.shapes) or form.shapes[hidden] is None:
            return None
        return Place(hidden, text)

    def locate_text(self, index: int, result: Any, hidden: Tensor) -> None:
        """Block ``index`` returned ``result``, and the next block got ``hidden`` with text concatenated: on which side?

        Compares contents (and so waits for the device, once a run): the image tokens are those of the result before,
        or, where the host added something to them in between, the text is that result's text.
        """
        place = self.place(index)
        places = places_of(result) or ()
        if place is None:
            return
        image = places[place.hidden or 0]
        found = {"suffix": _leads(hidden, image), "prefix": _trails(hidden, image)}
        if place.text is not None and not any(found.values()):
            text = places[place.text]
            found = {"prefix": _leads(hidden, text), "suffix": _trails(hidden, text)}
        if sum(found.values()) == 1:
            self.side = next(side for side, here in found.items() if here)


def _only(shapes: Sequence[Any], taken: int | None, wanted: Any, not_wanted: Any) -> int | None:
    """The one free place that has the wanted shape, unless two different things have that shape."""
    free = [k for k, shape in enumerate(shapes) if shape is not None and k != taken]
    fitting = [k for k in free if shapes[k] == wanted]
    if taken is None and wanted == not_wanted and len(free) > 1:
        return None
    return fitting[0] if len(fitting) == 1 else None


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
