"""What stands in the place of a model's blocks for one call. Plain enough for ``torch.compile`` to follow.

Nothing here decides anything: parts either compute, and note what went into the stack and what came out, or they skip. Shapes
are not kept, so one part serves them all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import Factory, define

import torch
from magpolicy_torch.blocks._entry import Entry
from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._observed import Returned
from magpolicy_torch.blocks._pattern import BESIDE, BlockStates, ForwardPattern, Source, Sources, switches
from magpolicy_torch.blocks._tokens import bounds, entering, narrow, replaced
from magpolicy_torch.residuals import _arithmetic
from torch import Tensor, nn


@define(eq=False)
class StackIO:
    """What the parts of a call note (computed) or are given (skipped)."""

    before: Tensor | None = None
    """Hidden states that went into the stack."""
    second_before: Tensor | None = None
    last: Tensor | None = None
    """Hidden states that went into the last block."""
    after: Tensor | None = None
    """Hidden states that came out of it."""
    second_after: Tensor | None = None
    version: int = -1
    """Of ``before``, before anybody could write to it."""
    version_after: int = -1
    """Of ``after``, as it left the stack."""
    residual: Tensor | None = None
    second_residual: Tensor | None = None
    image: Tensor | None = None
    """What the stack gives on a skip, image tokens only."""
    second: Tensor | None = None
    texts: list[tuple[Tensor, int]] = Factory(list)
    """The copy of the text that a skip handed on, with its version."""
    beside: list[weakref.ref[Tensor]] = Factory(list)
    """What a skip returned in place of what blocks return beside their states."""
    order: list[int] = Factory(list)
    """The blocks that a skip was asked for."""
    misfit: bool = False
    """The residual does not fit: what a skip returned is of no use."""
    strange: bool = False
    """A block was called otherwise than it was seen to be."""

    @property
    def written(self) -> bool:
        """Whether the model wrote into what entered or left the stack, of which there are no copies."""
        noted = ((self.before, self.version), (self.after, self.version_after))
        return any(tensor is not None and then >= 0 and version(tensor) != then for tensor, then in noted)

    def clear(self) -> None:
        """Let go of everything."""
        self.before = self.second_before = self.last = self.after = self.second_after = None
        self.residual = self.second_residual = self.image = self.second = None
        self.texts.clear()
        self.beside.clear()
        self.order.clear()
        self.misfit = self.strange = False
        self.version = self.version_after = -1


class Part(nn.Module):
    """In the place of ``block``, whose attributes it shows.

    Args:
        runs: whether the block is run: what walks a model's modules is to find it only then.
    """

    def __init__(self, block: nn.Module, *, runs: bool = False) -> None:
        super().__init__()
        self.__dict__["shown"] = block
        if runs:
            self.block = block
        self.training = block.training  # not train(), which would have the children follow

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.shown, args, kwargs)

    def run(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In the place of ``block(*args, **kwargs)``, which it makes unless a part says otherwise."""
        return block(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["shown"], name)

    # A block that is a container shows what it holds, too: a model may look into it, or call that instead.

    def __getitem__(self, index: Any) -> Any:
        return self.__dict__["shown"][index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["shown"])

    def __len__(self) -> int:
        return len(self.__dict__["shown"])

    def __bool__(self) -> bool:
        return True


class Probe(Part):
    """Hands its call to whoever observes: ``observe(block, args, kwargs)``."""

    def __init__(self, block: nn.Module, observe: Callable[..., Any]) -> None:
        super().__init__(block, runs=True)
        self.__dict__["run"] = observe


class Tap(Part):
    """Runs the block; notes what goes in if it is the first, and what comes out if it is the last.

    Args:
        copied: note copies, since the model writes into what goes in or comes out.
        entry: makes what goes in of what the first block is passed.
    """

    def __init__(
        self,
        block: nn.Module,
        io: StackIO,
        pattern: ForwardPattern,
        *,
        first: bool,
        last: bool,
        copied: bool,
        entry: Entry | None = None,
    ) -> None:
        super().__init__(block, runs=True)
        self.io, self.pattern, self.entry = io, pattern, entry if first else None
        self.first, self.last, self.copied = first, last, copied

    def run(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        io, pattern = self.io, self.pattern
        entered = (args, kwargs) if self.entry is None else self.entry(args, kwargs)
        try:
            hidden, _, second = read(pattern.sources, *entered)
        except LookupError:  # it is called in another way than when such a call was observed
            return block(*args, **kwargs)
        if self.first and hidden is not None:
            io.before = hidden.clone() if self.copied else hidden
            io.second_before = None if second is None else second.clone()
            if not self.copied and not torch.compiler.is_compiling():
                io.version = version(hidden)
        if self.last:
            io.last = hidden
        result = block(*args, **kwargs)
        if self.last:
            io.after, io.second_after = state_in(pattern, 0, result), state_in(pattern, 2, result)
            if self.copied and io.after is not None:
                io.after = io.after.detach().clone()
            elif io.after is not None and not torch.compiler.is_compiling():
                io.version_after = version(io.after)
        return result


class Skip(Part):
    """A block of a skip. The first one makes the stack's output of its input, which goes on as it is; the last one returns that
    output, text in its place. One block can be both, where nothing happens to the hidden states in between.

    Args:
        index: of the block, where the order of blocks is to be noted, and their arguments looked at.
        copies_text: the first one hands on a copy of the text: the host may write to it, and what it passed in stays its own.
        entry: makes what goes in of what the first one is passed.
        bases: what the residuals of the hidden states and of the second stream are added to, where that is not what goes in.
        whole: it is a whole model, whose result may have another shape.
    """

    def __init__(
        self,
        block: nn.Module,
        io: StackIO,
        pattern: ForwardPattern,
        layout: Layout,
        side: str | None,
        *,
        first: bool,
        last: bool,
        index: int | None,
        copies_text: bool = True,
        entry: Entry | None = None,
        bases: tuple[_arithmetic.Base | None, _arithmetic.Base | None] = (None, None),
        whole: bool = False,
    ) -> None:
        super().__init__(block)
        self.entry, self.bases, self.whole = entry if first else None, bases, whole
        self.io, self.pattern, self.layout, self.side = io, pattern, layout, side
        self.first, self.last, self.index, self.copies_text = first, last, index, copies_text

    def run(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        io, pattern = self.io, self.pattern
        if self.index is not None:
            io.order.append(self.index)
            if len(kwargs) != pattern.arguments or switches(kwargs) != pattern.switches:
                if self.first:
                    io.misfit = True
                else:
                    io.strange = True
        entered = (args, kwargs) if self.entry is None else self.entry(args, kwargs)
        try:
            hidden, text, second = read(pattern.sources, *entered)
        except LookupError:
            io.strange = True
            return block(*args, **kwargs)
        assert hidden is not None
        if self.first:
            if text is not None and self.copies_text:
                text = text.clone()
                if not torch.compiler.is_compiling():
                    io.texts.append((text, version(text)))
            self._enter(hidden, second)
        if not self.last:
            if self.first:
                hidden, second = hidden.clone(), None if second is None else second.clone()
            return self._result(hidden, text, second)
        out = io.image
        if not self.whole and (out is None or out.shape != hidden.shape):
            out = None if out is None else replaced(hidden, out, self.layout, self.side)
            if out is None:
                io.misfit = True
                out = hidden
        return self._result(hidden if out is None else out, text, second if io.second is None else io.second)

    def _result(self, hidden: Tensor, text: Tensor | None, second: Tensor | None) -> Any:
        """A result of the block that holds these states, and ``nan`` for what is beside them: it shows whether that is used."""
        pattern = self.pattern
        if not pattern.order:
            return hidden
        if pattern.spread and text is not None:
            text = text.expand(hidden.shape[0], *text.shape[1:])
        states = (hidden, text, second)
        values = [None if state is None or state == BESIDE else states[state] for state in pattern.order]
        for place, shape in pattern.beside.items():
            values[place] = made = hidden.new_full((), torch.nan).expand(shape)
            if not torch.compiler.is_compiling():
                self.io.beside.append(weakref.ref(made))
        if pattern.fields:
            return pattern.kind(**{f: v for f, v in zip(pattern.fields, values, strict=True) if v is not None})
        return pattern.kind(values)

    def _enter(self, hidden: Tensor, second: Tensor | None) -> None:
        io, residual, image = self.io, self.io.residual, hidden
        if self.whole:
            pass
        elif self.index == 0:
            found = entering(self.layout, hidden)
            image = hidden if found is None else found
        elif residual is not None and hidden.shape != residual.shape:  # the last block, which may be given text as well
            around = bounds(self.layout, self.side, hidden, residual.shape)
            image = hidden if around is None else narrow(hidden, *around)
        io.image = self._added(self.bases[0], image, residual)
        if second is not None and io.second_residual is not None:
            io.second = self._added(self.bases[1], second, io.second_residual)

    def _added(self, base: _arithmetic.Base | None, tensor: Tensor, residual: Tensor | None) -> Tensor:
        before = None if residual is None else _arithmetic.counted_from(base, tensor, residual)
        if before is None or residual is None:
            self.io.misfit = True
            return tensor
        return _arithmetic.apply(before, residual)


class Unexpected(Part):
    """A block that was not run when the residual was computed; on a skip it is run, and noted."""

    def __init__(self, block: nn.Module, io: StackIO, index: int) -> None:
        super().__init__(block, runs=True)
        self.io, self.index = io, index

    def run(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.io.order.append(self.index)
        return block(*args, **kwargs)


class SkippedBranch(Part):
    """A module beside the stack, on a skip: nobody looks at its result, which is made of what it is given."""

    def __init__(self, block: nn.Module, sources: Sources, returned: Returned) -> None:
        super().__init__(block, runs=True)
        self.sources, self.returned = sources, returned

    def run(self, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = read(self.sources, args, kwargs).hidden
        result = None if hidden is None else self.returned.filled(hidden)
        return block(*args, **kwargs) if result is None else result


Parts = Mapping[int, Part]
"""By index: of the blocks, and after them of the modules beside the stack."""


def read(sources: Sources, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BlockStates:
    """The states that are passed there. Raises LookupError if they are passed otherwise."""
    hidden, text, second = sources
    return BlockStates(_given(hidden, args, kwargs), _given(text, args, kwargs), _given(second, args, kwargs))


def _given(source: Source, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if source is None:
        return None
    argument, place = source if isinstance(source, tuple) else (source, None)
    value = kwargs[argument] if isinstance(argument, str) else args[argument]
    return value if place is None else value[place]


def state_in(pattern: ForwardPattern, state: int, result: Any) -> Any:
    """What ``result`` holds of a state, by its index; ``None`` if nothing."""
    if not pattern.order:
        return result if state == 0 else None
    if state not in pattern.order:
        return None
    index = pattern.order.index(state)
    if pattern.fields:
        name = pattern.fields[index]
        return result[name] if isinstance(result, Mapping) else getattr(result, name)
    return result[index]


def version(tensor: Tensor) -> int:
    """Counts the writes into ``tensor`` and its views; inference tensors do not count them."""
    return 0 if tensor.is_inference() else int(tensor._version)
