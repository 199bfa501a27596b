"""What stands in the place of a model's blocks once they are understood. Plain enough for ``torch.compile`` to follow.

Nothing here decides anything: a twin of parts either computes, and notes what went into the stack and what came out, or it
skips. Shapes are not kept, so one part serves them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, frozen

import torch
from magpolicy_torch.blocks._layout import ForwardPattern, Layout, StatePositions
from magpolicy_torch.residuals import _arithmetic
from torch import Tensor, nn

Source = str | int | None


@define(eq=False)
class StackIO:
    """What a call notes (computed) or is given (skipped)."""

    before: Tensor | None = None
    """Hidden states that went into the stack."""
    also_before: Tensor | None = None
    last: Tensor | None = None
    """Hidden states that went into the last block."""
    after: Tensor | None = None
    """Hidden states that came out of it."""
    also_after: Tensor | None = None
    version: int = -1
    """Of ``before``, before anybody could write to it."""
    residual: Tensor | None = None
    also_residual: Tensor | None = None
    image: Tensor | None = None
    """What the stack gives on a skip, image tokens only."""
    also: Tensor | None = None
    void: bool = False
    """The residual does not fit: what the call returns is of no use."""

    def clear(self) -> None:
        """Let go of every tensor."""
        self.before = self.also_before = self.last = self.after = self.also_after = self.residual = self.also_residual = None
        self.image = self.also = None
        self.void = False


@frozen
class Read:
    """Where the streams are among a block's arguments."""

    sources: tuple[Source, ...]

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Hidden states, text, and the second stream; ``None`` for what is not passed."""
        hidden, text, also = self.sources
        return (
            None if hidden is None else kwargs[hidden] if isinstance(hidden, str) else args[hidden],
            None if text is None else kwargs[text] if isinstance(text, str) else args[text],
            None if also is None else kwargs[also] if isinstance(also, str) else args[also],
        )


@frozen
class Build:
    """How a block's result is put together."""

    kind: type
    bare: bool
    order: tuple[int | None, ...]
    """Which stream is at each place, ``None`` for none."""
    fields: tuple[str, ...]
    spread: bool
    """One prompt goes in for a batch of images, and comes out once an image."""
    plain: bool | None = None
    """For the common case, a tuple of hidden states and text: whether the text comes first."""

    @classmethod
    def of(cls, form: ForwardPattern, at: StatePositions) -> Build | None:
        """As ``form`` says; ``None`` if the result holds more than the streams."""
        if form.bare:
            return cls(Tensor, True, (0,), (), False)
        places = {place: stream for stream, place in enumerate(at) if place is not None}
        order = tuple(None if shape is None else places.get(k, -1) for k, shape in enumerate(form.shapes))
        if -1 in order:
            return None
        text = None if at.text is None or at.text >= len(form.shapes) else form.shapes[at.text]
        spread = text is not None and text != form.given[1]
        plain = order[0] == 1 if form.kind is tuple and sorted(order, key=str) == [0, 1] and not spread else None
        return cls(form.kind, False, order, form.fields, spread, plain)

    def __call__(self, hidden: Tensor, text: Tensor | None, also: Tensor | None) -> Any:
        """A result of these streams."""
        if self.bare:
            return hidden
        if self.plain is not None:
            return (text, hidden) if self.plain else (hidden, text)
        if self.spread and text is not None:
            text = text.expand(hidden.shape[0], *text.shape[1:])
        streams = (hidden, text, also)
        values = [None if stream is None else streams[stream] for stream in self.order]
        if self.fields:
            return self.kind(**{f: v for f, v in zip(self.fields, values, strict=True) if v is not None})
        return self.kind(values)

    def place(self, stream: int, result: Any) -> Any:
        """What ``result`` holds of a stream."""
        if self.bare:
            return result if stream == 0 else None
        if stream not in self.order:
            return None
        index = self.order.index(stream)
        if self.fields:
            name = self.fields[index]
            return result[name] if isinstance(result, Mapping) else getattr(result, name)
        return result[index]


class Part(nn.Module):
    """In the place of ``block``, whose attributes it shows."""

    def __init__(self, block: nn.Module, *, inside: bool = False) -> None:
        super().__init__()
        self.__dict__["shown"] = block  # not a submodule: what walks the twin is to find it only where it is run
        if inside:
            self.block = block
        self.training = block.training  # not train(), which would have the children follow

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["shown"], name)


class Probe(Part):
    """Hands its call to whoever watches."""

    def __init__(self, block: nn.Module, watch: Callable[..., Any]) -> None:
        super().__init__(block, inside=True)
        self.__dict__["watch"] = watch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch(self.block, args, kwargs)


class Tapped(Part):
    """Runs the block; notes what goes in if it is the first, and what comes out if it is the last."""

    def __init__(
        self, block: nn.Module, tap: StackIO, read: Read, build: Build, *, first: bool, last: bool, copied: bool
    ) -> None:
        super().__init__(block, inside=True)
        self.tap, self.read, self.build = tap, read, build
        self.first, self.last, self.copied = first, last, copied

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tap = self.tap
        hidden, _, also = self.read(args, kwargs)
        if self.first:
            tap.before = hidden.clone() if self.copied else hidden
            tap.also_before = None if also is None else also.clone()
            if not torch.compiler.is_compiling():
                tap.version = version(hidden)
        if self.last:
            tap.last = hidden
        result = self.block(*args, **kwargs)
        if self.last:
            tap.after, tap.also_after = self.build.place(0, result), self.build.place(2, result)
        return result


class Skipped(Part):
    """A block of a skip: the first one makes the stack's output of its input, which goes on as it is; the last one returns the
    output, text in its place. One block can be both, where nothing happens to the hidden states in between."""

    def __init__(self, block: nn.Module, tap: StackIO, read: Read, build: Build, layout: Layout, side: str | None) -> None:
        super().__init__(block)
        self.tap, self.read, self.build = tap, read, build
        self.layout, self.side = layout, side
        self.first = self.last = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tap, residual = self.tap, self.tap.residual
        hidden, text, also = self.read(args, kwargs)
        if self.first:
            # The host may write to these between blocks; what it passed in stays its own.
            text = text if text is None or self.last else text.clone()
            image = hidden
            if residual is not None and hidden.shape != residual.shape:
                found = bounds(self.layout, self.side, hidden, residual.shape)
                image = hidden if found is None else narrow(hidden, *found)
            tap.image = _added(tap, image, residual)
            if also is not None and tap.also_residual is not None:
                tap.also = _added(tap, also, tap.also_residual)
        if not self.last:
            if self.first:
                hidden, also = hidden.clone(), None if also is None else also.clone()
            return self.build(hidden, text, also)
        out = tap.image
        if out is None or out.shape != hidden.shape:
            out = None if out is None else replaced(hidden, out, self.layout, self.side)
            if out is None:
                tap.void = True
                out = hidden
        return self.build(out, text, also if tap.also is None else tap.also)


def _added(tap: StackIO, tensor: Tensor, residual: Tensor | None) -> Tensor:
    fits = residual is not None and residual.shape == tensor.shape and residual.dtype == tensor.dtype
    if residual is None or not fits or residual.device != tensor.device:
        tap.void = True
        return tensor
    return _arithmetic.apply(tensor, residual)


def bounds(layout: Layout, side: str | None, hidden: Tensor, image: torch.Size) -> tuple[int, int] | None:
    """Text tokens before and after the image tokens of ``hidden``, whose shape is given; ``None`` if that cannot be told."""
    if hidden.shape == image and layout.open:
        return 0, 0
    if hidden.ndim != 3 or len(image) != 3:
        return None
    return layout.front_back(hidden.shape[1] - image[1], side)


def replaced(hidden: Tensor, image: Tensor, layout: Layout, side: str | None) -> Tensor | None:
    """``hidden`` with its image tokens replaced; ``None`` if it cannot be told which they are."""
    if layout.swapped:
        return swapped(image, hidden.shape) if hidden.numel() == image.numel() else None
    found = bounds(layout, side, hidden, image.shape)
    if found is None:
        return None
    front, back = found
    if not front and not back:
        return image if image.shape == hidden.shape else None
    return torch.cat([hidden[:, :front], image, hidden[:, hidden.shape[1] - back :]], dim=1)


def narrow(hidden: Tensor, front: int, back: int) -> Tensor:
    """``hidden`` without so many tokens at its ends."""
    return hidden[:, front : hidden.shape[1] - back] if front or back else hidden


def swapped(image: Tensor, shape: Sequence[int]) -> Tensor:
    """``(batch * frames, places, channels)`` as ``(batch * places, frames, channels)``, the ``shape`` wanted."""
    frames, places = shape[1], image.shape[1]
    return image.reshape(-1, frames, places, image.shape[2]).transpose(1, 2).reshape(tuple(shape))


def swapped_back(after: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse: ``(batch * places, frames, channels)`` in the ``shape`` the stack was entered with."""
    frames, places = after.shape[1], shape[1]
    return after.reshape(-1, places, frames, after.shape[2]).transpose(1, 2).reshape(tuple(shape))


def version(tensor: Tensor) -> int:
    """Counts the writes into ``tensor`` and its views; inference tensors do not count them."""
    return 0 if tensor.is_inference() else int(tensor._version)
