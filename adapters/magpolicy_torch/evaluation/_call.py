"""One evaluation of a model: its blocks run and the residual is kept, or they are bypassed and the residual reused.

:class:`Call` follows the blocks through one forward, and :func:`evaluate` ties it to the run it is part of. Hosts differ only
in who calls :func:`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from magpolicy import Decision
from magpolicy_torch.blocks._layout import BlockStates, ForwardPattern, ObservedLayout, PassThrough, flags, places_of
from magpolicy_torch.blocks._stack import BlockStack, visiting
from magpolicy_torch.evaluation._run import Run, differences
from magpolicy_torch.evaluation._stack_parts import bounds, narrow, replaced, swapped_back, version
from magpolicy_torch.host._report import Timer
from torch import Tensor


class FastPath(Protocol):
    """A quicker way to call a model than with its blocks watched, for calls that look like one that was watched."""

    def quick(self, *, skip: bool) -> tuple[Any, Decision | None] | None:
        """The result, and why a skip was computed after all; ``None``: watch this call."""

    def plain(self) -> Any:
        """The result of the call as it is, nothing noted."""

    def learn(self, call: Call) -> None:
        """A computed call was watched, and understood."""

    def device(self) -> torch.device | None:
        """Where the call is made, if it can be told."""

    @property
    def learned(self) -> ObservedLayout | None:
        """What is known of calls that look like this one."""


def evaluate(
    run: Run,
    streams: Sequence[str],
    forward: Callable[[], Any],
    *,
    step: int | None = None,
    sigma: float | None = None,
    way: FastPath | None = None,
) -> Any:
    """Evaluate a model once: decide, call ``forward`` with the stack bypassed or not, commit what was done.

    Args:
        run: the run this evaluation belongs to.
        streams: the stream of this call, or those batched in it, in batch order and of equal size.
        forward: calls the model so that its blocks report here (the run's stack is installed, or probes stand in its place). It
            is called twice if it turns out that the blocks cannot be bypassed this time.
        step: position in the run, if the host knows it.
        sigma: noise level, for the trace.
        way: a quicker way than ``forward``, if there is one.

    Returns:
        what the model returned.
    """
    call = run.session.call(streams, step=step, sigma=sigma)
    if call is None:
        run.record.past_end.extend(streams)
        return forward() if way is None else way.plain()
    run.call, run.computed = call, None
    lap = Timer(None if way is None else way.device)
    try:
        decided = call.skip
        revised = run.hindrance(streams) if decided else None
        skip = decided and revised is None
        if not skip:
            run.make_room(call)
        done = None if way is None else way.quick(skip=skip)
        result, late = watched(run, streams, forward, way, skip=skip) if done is None else done
        revised = revised or late
        run.commit(call, revised)
    except BaseException:
        call.cancel()
        run.computed = None
        run.send_away()
        raise
    lap.stop()
    run.record.laps.append((decided and revised is None, lap))
    run.look_ahead(call)
    return result


def watched(
    run: Run, streams: Sequence[str], forward: Callable[[], Any], way: FastPath | None, *, skip: bool
) -> tuple[Any, Decision | None]:
    """The result of a call whose blocks are watched, and why a skip was computed after all."""
    learned = (None if way is None else way.learned) or run.learned
    call = Call(run, streams, learned, skip=skip)
    with visiting(call):
        result = forward()
    revised = call.revised
    if call.skipping and not call.sound:
        # The host left blocks out or called them differently: what it returned is void, so once more, computed.
        if revised is None:
            run.unsupported.update(streams)
            revised = Decision.UNSUPPORTED
        run.send_away()
        call = Call(run, streams, learned, skip=False)
        with visiting(call):
            result = forward()
    if not call.skipping:
        if not call.sound:
            run.unsupported.update(streams)
        elif way is not None:
            way.learn(call)
        run.computed = call.residuals, call.order
    return result, revised


class Call:
    """Follows the blocks of one stack through one forward."""

    def __init__(self, run: Run, streams: Sequence[str], learned: ObservedLayout, *, skip: bool) -> None:
        self.stack = run.stack
        self.streams = tuple(streams)
        self.skipping = skip
        self.revised: Decision | None = None
        """Why a skip was computed after all."""
        self.order: list[int] = []
        """The blocks called so far."""
        self.residuals: dict[str, tuple[Tensor, ...]] = {}
        """Per stream, once a computed call is through: of the hidden states, and of what goes with them."""
        self.echoes: dict[int, PassThrough] | None = None
        """Blocks that need no further look, while they are called in the expected order."""
        self.expected: tuple[int, ...] = ()
        """The blocks that ran when these streams were last computed, and an end that no block has."""
        self.learned = learned
        self.sources: dict[int, tuple[tuple[str | int | None, ...], int]] = {}
        """Per block that was looked at, where it was passed the streams, and its number of keyword arguments."""
        self.touched: set[int] = set()
        """Blocks that were given tensors that the block before had not seen, or that were written to since."""
        self.entered: tuple[Tensor, Tensor | None] | None = None
        """Once a computed call is through: image tokens, and the second stream, of the stack's input."""
        self._run = run
        self._broken = False
        self._left_out = False  # a block beside the stack was bypassed
        self._previous: tuple[int, Any, dict[int, int]] | None = (
            None  # the block before, its result, and writes into what it saw
        )
        self._input: Tensor | None = None  # image tokens of the stack's input, as the model holds them
        self._copy: Tensor | None = None  # the same before the model could write to them
        self._version = -1
        self._also: Tensor | None = None  # a copy of the second stream at the stack's input
        self._final: tuple[Tensor, Tensor | None] | None = None  # on a skip: image tokens (and the second stream) of the output

    @property
    def sound(self) -> bool:
        """Whether the host ran the stack from end to end in a way that was understood."""
        if self._broken or not self.order or self.order[-1] != len(self.stack) - 1:
            return False
        seen = self._run.seen
        return not self.skipping or all(seen.get(s) == tuple(self.order) for s in self.streams)

    def block(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Block ``index`` was called."""
        # Blocks in between may be left out (skip-layer guidance); the first one may not, nor may any run twice.
        if index <= (self.order[-1] if self.order else -1) or (index and not self.order):
            self._broken = True
        self.order.append(index)
        if not self._broken and self.skipping:
            result = self._reuse(index, args, kwargs)
            if result is not None:
                return result
        if self._broken or self.skipping:
            self._broken = True
            return original(*args, **kwargs)
        return self._compute(index, original, args, kwargs)

    def lost(self) -> None:
        """A block did otherwise than it was known to."""
        self._broken = True

    def _expect(self) -> None:
        """From the second block on: what is known of these streams' last computed call."""
        orders = {self._run.seen.get(stream) for stream in self.streams}
        order = orders.pop() if len(orders) == 1 else None
        if order is not None:
            self.expected, self.echoes = (*order, -1), self.learned.echoes

    def beside(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block that works for the stack alone was called: on a skip, nobody looks at its result."""
        streams = self.stack.beside_arguments[index].streams(args, kwargs)
        if self.skipping and not self._broken:
            form = self.learned.beside.get(index)
            result = None if form is None or streams.hidden is None else form.like(streams.hidden)
            if result is not None:
                self._left_out = True
                return result
        result = original(*args, **kwargs)
        form = ForwardPattern.of(result, streams, kwargs)
        if form is not None:
            self.learned.beside[index] = form
        return result

    def _compute(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        streams = self.stack.arguments[index].streams(args, kwargs)
        if streams.hidden is None or not self._enter(index, streams):
            self._broken = True
        self._previous = None  # the model is done with that result; holding on to it would cost memory
        result = original(*args, **kwargs)
        form = None if streams.hidden is None else ForwardPattern.of(result, streams, kwargs)
        if form is None:
            self._broken = True
        if self._broken or form is None or streams.hidden is None:
            return result
        self.learned.forms[index] = self.learned.variants[index, form.flags] = form
        self.sources[index] = self.stack.arguments[index].sources(args, kwargs), len(kwargs)
        if index == len(self.stack) - 1:
            self._broken = not self._finish(index, streams.hidden, result)
        else:
            shown = [*streams, *(places_of(result) or ())]
            self._previous = index, result, {id(tensor): version(tensor) for tensor in shown if tensor is not None}
        return result

    def _enter(self, index: int, streams: BlockStates) -> bool:
        """Before block ``index`` computes: note the stack's input, or what the block before returned."""
        hidden, learned = streams.hidden, self.learned
        assert hidden is not None
        if index == 0:
            image = self._image(index, hidden)
            if image is None:
                return False
            self._input = image.detach()
            if learned.in_place is not False:
                self._copy = self._input.clone()
            self._version = version(self._input)
            self._also = None if streams.also is None else streams.also.detach().clone()
            self._expect()
            return True
        if self._previous is not None and self._input is not None:
            before, result, versions = self._previous
            learned.link(before, result, streams)
            if any(tensor is not None and versions.get(id(tensor)) != version(tensor) for tensor in streams):
                self.touched.add(index)
            more = hidden.ndim == 3 and hidden.shape[1] > self._input.shape[1]
            if more and learned.side is None and self.stack.layouts[index].open:
                learned.locate_text(before, result, hidden)
        return self._image(index, hidden) is not None

    def _finish(self, index: int, hidden: Tensor, result: Any) -> bool:
        """After the last block: the residual of each stream. False if the stack's structure is not understood."""
        learned = self.learned
        before, self._input = self._input, None
        if before is None or not learned.settle(self.sources):
            return False
        self._understand()
        at, places = learned.settled[index], places_of(result) or ()
        after = places[at.hidden or 0]
        image = image_of(self.stack, learned.side, hidden, after, before.shape)
        if image is None or image.dtype != before.dtype or image.device != before.device:
            return False
        if self._copy is not None:
            # Once a run, waits for the device: a model that writes into its stack's input needs the copy every time.
            if learned.in_place is None:
                learned.in_place = not torch.equal(before, self._copy)
            before, self._copy = self._copy, None
        elif version(before) != self._version:
            learned.in_place = True  # from now on; this call's input is lost
            return True
        pairs = [(image, before)]
        if at.also is not None and self._also is not None and places[at.also] is not None:
            pairs.append((places[at.also], self._also))
            if places[at.also].shape != self._also.shape:
                return False
        self.entered = before, self._also
        self._also = None
        self.residuals = differences(self.streams, pairs, self._batch)
        return True

    def _understand(self) -> None:
        """The structure is settled: the blocks in between that were looked at in this call need no further look."""
        learned = self.learned
        for index, (sources, count) in self.sources.items():
            echo = PassThrough.of(learned.forms[index], learned.settled[index], sources, count)
            if echo is None or index in (0, len(self.stack) - 1):
                learned.echoes.pop(index, None)
            else:
                learned.echoes[index] = echo

    def _reuse(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of block ``index`` without running it, or ``None`` if there is none.

        At the first block that is no harm yet: with ``revised`` set, the call goes on computing.
        """
        hidden, text, also = streams = self.stack.arguments[index].streams(args, kwargs)
        form, place = self.learned.variants.get((index, flags(kwargs))), self.learned.settled.get(index)
        known = hidden is not None and form is not None and place is not None
        if index == 0:
            reason = self._prepare(streams) if known else Decision.MISMATCH
            if reason is not None:
                self._run.send_away()
                self.revised = reason
                self.skipping = self._left_out  # void already: it is called once more
                return None
        if not known or hidden is None or form is None or place is None or self._final is None:
            return None
        image, second = self._final
        if index == len(self.stack) - 1:
            out, also = replaced(hidden, image, self.stack.layouts[index], self.learned.side), second
        elif index == 0:
            # The host may add to this in place between blocks; what it passed in stays its own.
            out, text, also = (None if t is None else t.clone() for t in streams)
        else:
            out = hidden
        return None if out is None else form.build(place, BlockStates(out, text, also))

    def _prepare(self, streams: BlockStates) -> Decision | None:
        """The stack's output from its input; or the reason why not."""
        image = None if streams.hidden is None else self._image(0, streams.hidden)
        if image is None or not image.ndim or image.shape[self._batch] % len(self.streams):
            return Decision.MISMATCH
        out = self._run.applied(self.streams, image, self._run.store, self._batch)
        second: Tensor | Decision | None = None
        if streams.also is not None and self._run.also.streams:
            second = self._run.applied(self.streams, streams.also, self._run.also, self._batch)
        for found in (out, second):
            if isinstance(found, Decision):
                return found
        assert isinstance(out, Tensor) and not isinstance(second, Decision)  # noqa: PT018
        self._final = out, second
        self._expect()
        return None

    def _image(self, index: int, hidden: Tensor) -> Tensor | None:
        """The image tokens of ``hidden``; ``None`` if it cannot be told which they are."""
        layout = self.stack.layouts[index]
        if index and self._input is not None:
            if layout.swapped:
                return hidden if hidden.numel() == self._input.numel() else None
            found = bounds(layout, self.learned.side, hidden, self._input.shape)
            return None if found is None else narrow(hidden, *found)
        if layout.swapped:
            return hidden
        front, back = (0 if n == "auto" else n for n in (layout.prefix, layout.suffix))
        enough = front + back == 0 or (hidden.ndim == 3 and hidden.shape[1] > front + back)
        return narrow(hidden, front, back) if enough else None

    @property
    def _batch(self) -> int:
        return self.stack.layouts[0].batch


def image_of(stack: BlockStack, side: str | None, hidden: Tensor, after: Tensor, shape: torch.Size) -> Tensor | None:
    """Of what the last block returned, ``after``, when it was given ``hidden``: the image tokens, in the ``shape`` they entered
    the stack with. ``None`` if it cannot be told which they are."""
    layout = stack.layouts[-1]
    if after.shape != hidden.shape:
        return None
    if layout.swapped:
        return swapped_back(after, shape) if after.numel() == shape.numel() else None
    found = bounds(layout, side, hidden, shape)
    image = None if found is None else narrow(after, *found)
    return image if image is not None and image.shape == shape else None
