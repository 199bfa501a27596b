"""Where hidden states sit in a block's arguments and in its result.

:class:`Layout` is the description a person can give. What it leaves open is found on the first computed call of a run:
:class:`ForwardPattern` is the result one block returned there, and :class:`ObservedLayout` what all of them say together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from attrs import Factory, define, frozen

import torch
from magpolicy import AdapterError
from torch import Tensor

HIDDEN_NAMES = (
    "hidden_states", "x", "img", "image", "latent", "latents", "sample", "hidden", "visual_embed", "vis", "h",
)  # fmt: skip
ALSO_NAMES = ("audio_hidden_states", "audio", "aud", "audio_embed")
TEXT_NAMES = ("encoder_hidden_states", "txt", "text", "context", "text_embed", "encoder_hidden", "ctx")

Tokens = int | Literal["auto"]
Flags = tuple[tuple[str, Any], ...]


@frozen
class Layout:
    """Where one class of blocks takes and returns hidden states.

    ``None`` in ``text``, ``result`` and ``text_result`` leaves it to be found on the first computed call of a run.
    Hidden states are ``(batch, tokens, channels)``; other shapes work where no text is concatenated to them.
    """

    __module__ = "magpolicy_torch"

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
    also: str | int | None = None
    """Argument that holds a second stream which leaves the stack and is used after it (the audio of a video): its residual is
    kept and reused with that of the hidden states. Names such as ``audio_hidden_states`` tell themselves."""
    also_result: int | None = None
    """Index of that second stream in a tuple result; found if left out."""
    batch: int = 0
    """Dimension of the hidden states in which samples follow one another."""
    swapped: bool = False
    """Frames and places change roles: the stack's input is ``(batch * frames, places, channels)``, this block's argument and
    result are ``(batch * places, frames, channels)``."""

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
        text = next((p for p in TEXT_NAMES if p in parameters), None)
        return cls(hidden, text, also=next((p for p in ALSO_NAMES if p in parameters and p != hidden), None))

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
        self._also = None if layout.also is None else _access(layout.also, names)

    def streams(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BlockStates:
        """The hidden states, the text, and what goes with them: those that are tensors among the arguments."""
        return BlockStates(*(None if at is None else _read(at, args, kwargs) for at in (self._hidden, self._text, self._also)))

    def sources(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str | int | None, ...]:
        """Where the host passes each of them: by which name, or at which position."""
        found: list[str | int | None] = []
        for position, name in (at or (None, None) for at in (self._hidden, self._text, self._also)):
            by_name = name is not None and kwargs.get(name) is not None
            found.append(name if by_name else position if position is not None and position < len(args) else None)
        return tuple(found)


class BlockStates(NamedTuple):
    """What a block is given and returns."""

    hidden: Tensor | None
    text: Tensor | None = None
    also: Tensor | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Their shapes."""
        return tuple(None if t is None else tuple(t.shape) for t in self)


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
class ForwardPattern:
    """The form of a result: its type and what stood at each place. Holds shapes, never tensors."""

    kind: type
    shapes: tuple[tuple[int, ...] | None, ...]
    """Shape of the tensor at each place, ``None`` where there was ``None``."""
    fields: tuple[str, ...] = ()
    """For an output object: the names of its places."""
    given: tuple[tuple[int, ...] | None, ...] = (None, None, None)
    """Shapes of the streams the block was given."""
    flags: Flags = ()
    """Switches among the arguments (``return_dict=False``): another value may mean another form."""

    @classmethod
    def of(cls, result: Any, streams: BlockStates, kwargs: Mapping[str, Any]) -> ForwardPattern | None:
        """The form of ``result``, or ``None`` if it is none we could build."""
        places = places_of(result)
        if places is None or not all(p is None or isinstance(p, Tensor) for p in places):
            return None
        shapes = tuple(None if p is None else tuple(p.shape) for p in places)
        return cls(type(result), shapes, tuple(_fields(result)), streams.shapes, flags(kwargs))

    @property
    def bare(self) -> bool:
        """A tensor by itself."""
        return issubclass(self.kind, Tensor)

    def passes(self, at: StatePositions) -> bool:
        """Whether the block returned its streams in the shapes it was given, and nothing else."""
        if self.bare:
            return self.shapes[0] == self.given[0]
        wanted = dict(zip(at, self.given, strict=True))
        return all(
            shape is None or wanted.get(k) == shape or (k == at.text and _spreads(wanted.get(k), shape))
            for k, shape in enumerate(self.shapes)
        )

    def build(self, at: StatePositions, streams: BlockStates) -> Any:
        """A result of this form; ``None`` if it has a place that none of ``streams`` fills."""
        if self.bare:
            return streams.hidden
        filling: dict[int, Tensor] = {}
        for place, tensor in zip(at, streams, strict=True):
            if place is not None and tensor is not None:
                # As it was seen: a batch of another size says nothing about the text of this one.
                spread = place == at.text and _spreads(self.given[1], self.shapes[place]) and streams.hidden is not None
                filling[place] = tensor.expand(len(streams.hidden), *tensor.shape[1:]) if spread else tensor  # type: ignore[arg-type]
        values = [None if shape is None else filling.get(k) for k, shape in enumerate(self.shapes)]
        if any(v is None and shape is not None for v, shape in zip(values, self.shapes, strict=True)):
            return None
        if self.fields:
            return self.kind(**{f: v for f, v in zip(self.fields, values, strict=True) if v is not None})
        return self.kind(values)

    def like(self, hidden: Tensor) -> Any:
        """A result of this form that nobody will look at, made of ``hidden``; ``None`` if the shapes are others."""
        if tuple(hidden.shape) != self.given[0] or any(s not in (None, self.given[0]) for s in self.shapes):
            return None
        filling = [None if shape is None else hidden for shape in self.shapes]
        return hidden if self.bare else None if self.fields else self.kind(filling)


def _spreads(given: Sequence[int] | None, returned: Sequence[int] | None) -> bool:
    """Whether one prompt was given for a batch of images, and the block returned it once an image."""
    if given is None or returned is None or given[0] != 1:
        return False
    return returned[0] > 1 and tuple(given[1:]) == tuple(returned[1:])


def flags(kwargs: Mapping[str, Any]) -> Flags:
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


@frozen(eq=False)
class PassThrough:
    """A block between the first and the last, once it is understood: on a skip it returns what it was given, and on a computed
    call it need not be looked at again while it is called in the same way."""

    kind: type
    """Type of its result."""
    arguments: int
    """Number of its keyword arguments."""
    flags: Flags
    result: Callable[[Sequence[Any], Mapping[str, Any]], Any]
    """What it returns on a skip, of its arguments. Raises LookupError if they are passed otherwise."""

    @classmethod
    def of(
        cls, form: ForwardPattern, at: StatePositions, sources: Sequence[str | int | None], arguments: int
    ) -> PassThrough | None:
        """Of a block whose result has ``form``; ``None`` if its result is more than what it was given."""
        if form.bare:
            wanted = [sources[0]]
        else:
            by_place = {place: source for place, source in zip(at, sources, strict=True) if place is not None}
            if form.fields or any(shape is None for shape in form.shapes):
                return None
            wanted = [by_place.get(k) for k in range(len(form.shapes))]
        if any(source is None for source in wanted):
            return None
        return cls(form.kind, arguments, form.flags, _echo([s for s in wanted if s is not None], form.bare, form.kind))


def _echo(sources: Sequence[str | int], bare: bool, kind: type) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    names = [s for s in sources if isinstance(s, str)]
    places = [s for s in sources if isinstance(s, int)]
    if bare:
        only = sources[0]
        return (lambda args, kwargs: kwargs[only]) if isinstance(only, str) else (lambda args, kwargs: args[only])
    if kind is tuple and len(sources) == 2 and not places:
        one, two = names
        return lambda args, kwargs: (kwargs[one], kwargs[two])
    if kind is tuple and len(sources) == 2 and not names:
        first, second = places
        return lambda args, kwargs: (args[first], args[second])
    return lambda args, kwargs: kind([kwargs[s] if isinstance(s, str) else args[s] for s in sources])


class StatePositions(NamedTuple):
    """Index of each stream in a tuple result."""

    hidden: int | None = None
    text: int | None = None
    also: int | None = None


@define
class ObservedLayout:
    """What the computed calls of a run showed about a stack. Places are per class of block, forms per block."""

    places: dict[type, StatePositions] = Factory(dict)
    forms: dict[int, ForwardPattern] = Factory(dict)
    kinds: dict[int, type] = Factory(dict)
    side: str | None = None
    """``"prefix"`` or ``"suffix"``: where the model concatenates text."""
    in_place: bool | None = None
    """Whether the model writes into its stack input; ``None`` until a call has shown it."""
    variants: dict[tuple[int, Flags], ForwardPattern] = Factory(dict)
    """Per block and switches, the form of its result: branches of guidance may set switches of their own."""
    beside: dict[int, ForwardPattern] = Factory(dict)
    """Forms of the results of the blocks beside the stack."""
    echoes: dict[int, PassThrough] = Factory(dict)
    """Per block between the first and the last, what a call that is like the one understood needs to know."""
    settled: dict[int, StatePositions] = Factory(dict)
    """Per block, where things are in its result, once a computed call has been understood."""

    @classmethod
    def of(cls, kinds: Sequence[type], layouts: Sequence[Layout]) -> ObservedLayout:
        """What the layouts tell before any call."""
        places = {
            kind: StatePositions(lay.result, lay.text_result, lay.also_result) for kind, lay in zip(kinds, layouts, strict=True)
        }
        return cls(places, kinds=dict(enumerate(kinds)))

    def settle(self, order: Iterable[int]) -> bool:
        """Fix the places of the blocks looked at; False if one of them returned what a skip cannot build."""
        for index in order:
            place, form = self.place(index), self.forms[index]
            if place is None or not form.passes(place):
                return False
            self.settled[index] = place
        return True

    def link(self, index: int, result: Any, streams: BlockStates) -> None:
        """Block ``index`` returned ``result``, the next block was given ``streams``: which is which?"""
        kind = self.kinds[index]
        known = list(self.places[kind])
        for k, place in enumerate(places_of(result) or ()):
            # Once known it stays: a host that swaps two is caught by the shapes, not by a change of mind here.
            found = next((i for i, t in enumerate(streams) if place is not None and place is t), None)
            if found is not None and known[found] is None:
                known[found] = k
        self.places[kind] = StatePositions(*known)

    def place(self, index: int) -> StatePositions | None:
        """Where the streams are in the result of block ``index``; ``None`` if it cannot be told of the hidden states."""
        form = self.forms.get(index)
        if form is None:
            return None
        if form.bare:
            return StatePositions()
        kind = self.kinds[index]
        known = list(self.places[kind])
        for other in (form, *(f for i, f in self.forms.items() if i != index and self.kinds[i] is kind)):
            for i, at in enumerate(known):
                if at is None:
                    known[i] = _only(other, i, {k for k in known if k is not None})
        hidden = known[0]
        if hidden is None or hidden >= len(form.shapes) or form.shapes[hidden] is None:
            return None
        return StatePositions(*known)

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


def _only(form: ForwardPattern, stream: int, taken: set[int]) -> int | None:
    """The one free place that has the stream's shape, unless two different things have that shape."""
    wanted = form.given[stream]
    free = [k for k, shape in enumerate(form.shapes) if shape is not None and k not in taken]
    fitting = [k for k in free if form.shapes[k] == wanted]
    if form.given.count(wanted) > 1 and len(free) > 1 and not taken:
        return None
    return fitting[0] if wanted is not None and len(fitting) == 1 else None


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
