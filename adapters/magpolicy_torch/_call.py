"""One evaluation of a model: its blocks run and the residual is kept, or they are bypassed and the residual reused.

:class:`Run` holds what lives as long as a run, :class:`Call` follows the blocks through one forward, and
:func:`evaluate` ties both to the decisions of a session. Hosts differ only in who calls :func:`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define, field

import torch
from magpolicy import Decision, Session
from magpolicy_torch import _guard, _residual
from magpolicy_torch._calibrating import Moments
from magpolicy_torch._layout import Echo, Form, Learned, Streams, flags, places_of
from magpolicy_torch._report import Lap, Record
from magpolicy_torch._stack import BlockStack, visiting
from magpolicy_torch._store import ResidualStore
from torch import Tensor


@define(eq=False)
class Run:
    """What belongs to one run on one stack; freed by :meth:`free`, which the session calls at its end."""

    stack: BlockStack
    session: Session
    store: ResidualStore
    moments: Moments | None = None
    """Measures every residual, and none is kept, where this is a calibration run."""
    channel_dim: int = -1
    """Where the channels of a residual are, for the moments."""
    record: Record = Factory(Record)
    """What the report is made of."""
    also: ResidualStore = field(init=False)
    """Residuals of the second stream of each, where the stack has one (the audio of a video)."""
    learned: Learned = field(init=False)
    unsupported: set[str] = field(init=False, factory=set)
    """Streams whose calls cannot be bypassed."""

    def __attrs_post_init__(self) -> None:
        self.learned = Learned.of(self.stack.kinds, self.stack.layouts)
        self.also = ResidualStore(self.store.offload, self.store.storage_dtype)
        self.session.on_end(self.free)

    def free(self) -> None:
        """Let go of every tensor."""
        self.store.clear()
        self.also.clear()

    def hindrance(self, streams: Sequence[str]) -> Decision | None:
        """Why these streams cannot skip, as far as it is known before the model is called."""
        if not self.unsupported.isdisjoint(streams):
            return Decision.UNSUPPORTED
        return next(filter(None, map(self.store.missing, streams)), None)

    def applied(self, streams: Sequence[str], tensor: Tensor, store: ResidualStore, batch: int) -> Tensor | Decision:
        """``tensor``, in which the samples of ``streams`` follow one another along dimension ``batch``, plus the residual
        forecast for each; or the reason why not."""
        taken: list[Tensor] = []
        for stream, part in zip(streams, split(tensor, len(streams), batch), strict=True):
            coefficient = self.session.coefficient(stream)
            residual = store.take(stream, part, coefficient)
            if isinstance(residual, Decision):
                return residual
            if coefficient:
                self.record.forecast(self.session.step(stream), stream, store.held(stream))
            taken.append(residual)
        return _residual.apply(tensor, taken[0] if len(taken) == 1 else torch.cat(taken, dim=batch))

    def make_room(self, streams: Sequence[str]) -> None:
        """Before these streams compute: let go of what no step after this one can use."""
        for stream in streams:
            for store in (self.store, self.also):
                _guard.make_room(self.session, store, stream)

    def keep(self, call: Call) -> None:
        """Store what a computed call gave, and what it leaves of use from before."""
        if not call.sound:
            self.unsupported.update(call.streams)
        for stream in call.streams:
            residuals = call.residuals.get(stream, ())
            if residuals:
                self.learned.seen[stream] = tuple(call.order)
                if self.moments is not None:
                    self.moments.add(stream, residuals[0], self.channel_dim, step=self.session.step(stream))
                _guard.compare(self.session, self.store, stream, residuals[0], self.channel_dim)
            keep = 0 if self.moments is not None or stream in self.unsupported else self.session.keeps(stream)
            for place, store in enumerate((self.store, self.also)):
                if place < len(residuals):
                    store.put(stream, residuals[place], keep=keep)
                else:  # what is from before this call is stale, even if this call gave nothing
                    store.drop(stream)


def evaluate(
    run: Run,
    streams: Sequence[str],
    forward: Callable[[], Any],
    *,
    step: int | None = None,
    sigma: float | None = None,
) -> Any:
    """Evaluate a model once: decide, call ``forward`` with the stack bypassed or not, commit what was done.

    Args:
        run: the run this evaluation belongs to; its stack is installed.
        streams: the stream of this call, or those batched in it, in batch order and of equal size.
        forward: calls the model. It is called twice if it turns out that the blocks cannot be bypassed this time.
        step: position in the run, if the host knows it.
        sigma: noise level, for the trace.

    Returns:
        what ``forward`` returned.
    """
    session = run.session
    if min(map(session.remaining, streams)) <= 0:
        run.record.past_end.extend(streams)
        return forward()
    decision = session.decide(list(streams), step=step, sigma=sigma)
    lap = Lap()
    try:
        revised = run.hindrance(streams) if decision.skip else None
        call = Call(run, streams, skip=decision.skip and revised is None)
        if not call.skipping:
            run.make_room(streams)
        with visiting(call):
            result = forward()
        revised = revised or call.revised
        if call.skipping and not call.sound:
            # The host left blocks out or called them differently: what it returned is void, so once more, computed.
            if revised is None:
                run.unsupported.update(streams)
                revised = Decision.UNSUPPORTED
            call = Call(run, streams, skip=False)
            with visiting(call):
                result = forward()
        if not call.skipping:
            run.keep(call)
    except BaseException:
        session.cancel()
        raise
    lap.stop()
    run.record.laps.append((decision.skip and revised is None, lap))
    session.commit(revised)
    return result


class Call:
    """Follows the blocks of one stack through one forward."""

    def __init__(self, run: Run, streams: Sequence[str], *, skip: bool) -> None:
        self.stack = run.stack
        self.streams = tuple(streams)
        self.skipping = skip
        self.revised: Decision | None = None
        """Why a skip was computed after all."""
        self.order: list[int] = []
        """The blocks called so far."""
        self.residuals: dict[str, tuple[Tensor, ...]] = {}
        """Per stream, once a computed call is through: of the hidden states, and of what goes with them."""
        self.echoes: dict[int, Echo] | None = None
        """Blocks that need no further look, while they are called in the expected order."""
        self.expected: tuple[int, ...] = ()
        """The blocks that ran when these streams were last computed, and an end that no block has."""
        self._run = run
        self._learned = run.learned
        self._sources: dict[int, tuple[tuple[str | int | None, ...], int]] = {}
        self._broken = False
        self._left_out = False  # a block beside the stack was bypassed
        self._previous: tuple[int, Any] | None = None  # the block before and its result
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
        seen = self._learned.seen
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
        orders = {self._learned.seen.get(stream) for stream in self.streams}
        order = orders.pop() if len(orders) == 1 else None
        if order is not None:
            self.expected, self.echoes = (*order, -1), self._learned.echoes

    def beside(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block that works for the stack alone was called: on a skip, nobody looks at its result."""
        streams = self.stack.beside_arguments[index].streams(args, kwargs)
        if self.skipping and not self._broken:
            form = self._learned.beside.get(index)
            result = None if form is None or streams.hidden is None else form.like(streams.hidden)
            if result is not None:
                self._left_out = True
                return result
        result = original(*args, **kwargs)
        form = Form.of(result, streams, kwargs)
        if form is not None:
            self._learned.beside[index] = form
        return result

    def _compute(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        streams = self.stack.arguments[index].streams(args, kwargs)
        if streams.hidden is None or not self._enter(index, streams):
            self._broken = True
        self._previous = None  # the model is done with that result; holding on to it would cost memory
        result = original(*args, **kwargs)
        form = None if streams.hidden is None else Form.of(result, streams, kwargs)
        if form is None:
            self._broken = True
        if self._broken or form is None or streams.hidden is None:
            return result
        self._learned.forms[index] = self._learned.variants[index, form.flags] = form
        self._sources[index] = self.stack.arguments[index].sources(args, kwargs), len(kwargs)
        if index == len(self.stack) - 1:
            self._broken = not self._finish(index, streams.hidden, result)
        else:
            self._previous = index, result
        return result

    def _enter(self, index: int, streams: Streams) -> bool:
        """Before block ``index`` computes: note the stack's input, or what the block before returned."""
        hidden, learned = streams.hidden, self._learned
        assert hidden is not None
        if index == 0:
            image = self._image(index, hidden)
            if image is None:
                return False
            self._input = image.detach()
            if learned.in_place is not False:
                self._copy = self._input.clone()
            self._version = _version(self._input)
            self._also = None if streams.also is None else streams.also.detach().clone()
            self._expect()
            return True
        if self._previous is not None and self._input is not None:
            learned.link(*self._previous, streams)
            more = hidden.ndim == 3 and hidden.shape[1] > self._input.shape[1]
            if more and learned.side is None and self.stack.layouts[index].open:
                learned.locate_text(*self._previous, hidden)
        return self._image(index, hidden) is not None

    def _finish(self, index: int, hidden: Tensor, result: Any) -> bool:
        """After the last block: the residual of each stream. False if the stack's structure is not understood."""
        learned = self._learned
        before, self._input = self._input, None
        if before is None or not learned.settle(self._sources):
            return False
        self._understand()
        at, places = learned.settled[index], places_of(result) or ()
        after = places[at.hidden or 0]
        bounds = self._bounds(index, hidden, before.shape)
        if bounds is None or after.shape != hidden.shape:
            return False
        after = _narrow(after, *bounds)
        if self.stack.layouts[index].swapped:
            after = _swapped_back(after, before.shape)
        if after.shape != before.shape or after.dtype != before.dtype or after.device != before.device:
            return False
        if self._copy is not None:
            # Once a run, waits for the device: a model that writes into its stack's input needs the copy every time.
            if learned.in_place is None:
                learned.in_place = not torch.equal(before, self._copy)
            before, self._copy = self._copy, None
        elif _version(before) != self._version:
            learned.in_place = True  # from now on; this call's input is lost
            return True
        pairs = [(after, before)]
        if at.also is not None and self._also is not None and places[at.also] is not None:
            pairs.append((places[at.also], self._also))
            if places[at.also].shape != self._also.shape:
                return False
        self._also = None
        if before.ndim and all(b.shape[self._batch] % len(self.streams) == 0 for _, b in pairs):
            # Split first: a part of a difference would keep the whole of it alive.
            differences = [map(_residual.difference, self._split(a), self._split(b)) for a, b in pairs]
            self.residuals = dict(zip(self.streams, zip(*differences, strict=True), strict=True))
        return True

    def _understand(self) -> None:
        """The structure is settled: the blocks in between that were looked at in this call need no further look."""
        learned = self._learned
        for index, (sources, count) in self._sources.items():
            echo = Echo.of(learned.forms[index], learned.settled[index], sources, count)
            if echo is None or index in (0, len(self.stack) - 1):
                learned.echoes.pop(index, None)
            else:
                learned.echoes[index] = echo

    def _reuse(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of block ``index`` without running it, or ``None`` if there is none.

        At the first block that is no harm yet: with ``revised`` set, the call goes on computing.
        """
        hidden, text, also = streams = self.stack.arguments[index].streams(args, kwargs)
        form, place = self._learned.variants.get((index, flags(kwargs))), self._learned.settled.get(index)
        known = hidden is not None and form is not None and place is not None
        if index == 0:
            reason = self._prepare(streams) if known else Decision.MISMATCH
            if reason is not None:
                self.revised = reason
                self.skipping = self._left_out  # void already: it is called once more
                return None
        if not known or hidden is None or form is None or place is None or self._final is None:
            return None
        image, second = self._final
        if index == len(self.stack) - 1:
            out, also = self._replaced(index, hidden, image), second
        elif index == 0:
            # The host may add to this in place between blocks; what it passed in stays its own.
            out, text, also = (None if t is None else t.clone() for t in streams)
        else:
            out = hidden
        return None if out is None else form.build(place, Streams(out, text, also))

    def _prepare(self, streams: Streams) -> Decision | None:
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

    def _replaced(self, index: int, hidden: Tensor, image: Tensor) -> Tensor | None:
        """``hidden`` with its image tokens replaced."""
        bounds = self._bounds(index, hidden, image.shape)
        if bounds is None:
            return None
        if self.stack.layouts[index].swapped:
            image = _swapped(image, hidden.shape)
        front, back = bounds
        if not front and not back:
            return image if image.shape == hidden.shape else None
        return torch.cat([hidden[:, :front], image, hidden[:, hidden.shape[1] - back :]], dim=1)

    def _image(self, index: int, hidden: Tensor) -> Tensor | None:
        """The image tokens of ``hidden``; ``None`` if it cannot be told which they are."""
        shape = None if index == 0 else self._input.shape if self._input is not None else None
        bounds = self._bounds(index, hidden, shape)
        return None if bounds is None else _narrow(hidden, *bounds)

    def _bounds(self, index: int, hidden: Tensor, image: torch.Size | None) -> tuple[int, int] | None:
        """Text tokens before and after the image tokens; ``image`` is their shape, known after the first block."""
        layout = self.stack.layouts[index]
        if layout.swapped:
            return (0, 0) if image is None or hidden.numel() == image.numel() else None
        if image is None or index == 0:
            front, back = (0 if n == "auto" else n for n in (layout.prefix, layout.suffix))
            enough = front + back == 0 or (hidden.ndim == 3 and hidden.shape[1] > front + back)
            return (front, back) if enough else None
        if hidden.shape == image and layout.open:
            return 0, 0
        if hidden.ndim != 3 or len(image) != 3:
            return None
        return layout.front_back(hidden.shape[1] - image[1], self._learned.side)

    @property
    def _batch(self) -> int:
        return self.stack.layouts[0].batch

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return split(tensor, len(self.streams), self._batch)


def split(tensor: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    """``count`` equal parts of ``tensor`` along ``dim``."""
    return tensor.chunk(count, dim=dim) if count > 1 else (tensor,)


def _narrow(hidden: Tensor, front: int, back: int) -> Tensor:
    return hidden[:, front : hidden.shape[1] - back] if front or back else hidden


def _swapped(image: Tensor, shape: Sequence[int]) -> Tensor:
    """``(batch * frames, places, channels)`` as ``(batch * places, frames, channels)``, the ``shape`` wanted."""
    frames, places = shape[1], image.shape[1]
    return image.reshape(-1, frames, places, image.shape[2]).transpose(1, 2).reshape(tuple(shape))


def _swapped_back(after: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse: ``(batch * places, frames, channels)`` in the ``shape`` the stack was entered with."""
    frames, places = after.shape[1], shape[1]
    return after.reshape(-1, places, frames, after.shape[2]).transpose(1, 2).reshape(tuple(shape))


def _version(tensor: Tensor) -> int:
    """Counts the writes into ``tensor`` and its views; inference tensors do not count them."""
    return 0 if tensor.is_inference() else int(tensor._version)
