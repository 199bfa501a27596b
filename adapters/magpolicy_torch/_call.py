"""One evaluation of a model: its blocks run and the residual is kept, or they are bypassed and the residual reused.

:class:`Run` holds what lives as long as a run, :class:`Call` follows the blocks through one forward, and
:func:`evaluate` ties both to the decisions of a session. Hosts differ only in who calls :func:`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, field

import torch
from magpolicy import Decision, Session
from magpolicy_torch import _residual
from magpolicy_torch._layout import Form, Learned, flags, places_of
from magpolicy_torch._stack import BlockStack, visiting
from magpolicy_torch._store import ResidualStore
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@define(eq=False)
class Run:
    """What belongs to one run on one stack; freed by :meth:`free`, which the session calls at its end."""

    stack: BlockStack
    session: Session
    store: ResidualStore
    calibrate: bool = False
    """Keep the token norms of every residual, and no residual."""
    channel_dim: int = -1
    """Where the channels of a residual are, for the norms."""
    norms: dict[str, list[NDArray[np.float32]]] = Factory(dict)
    past_end: list[str] = Factory(list)
    """Streams of the evaluations after the run's last step."""
    learned: Learned = field(init=False)
    unsupported: set[str] = field(init=False, factory=set)
    """Streams whose calls cannot be bypassed."""

    def __attrs_post_init__(self) -> None:
        self.learned = Learned.of(self.stack.kinds, self.stack.layouts)
        self.session.on_end(self.free)

    def free(self) -> None:
        """Let go of every tensor."""
        self.store.clear()

    def hindrance(self, streams: Sequence[str]) -> Decision | None:
        """Why these streams cannot skip, as far as it is known before the model is called."""
        if not self.unsupported.isdisjoint(streams):
            return Decision.UNSUPPORTED
        return next(filter(None, map(self.store.missing, streams)), None)

    def keep(self, call: Call) -> None:
        """Store what a computed call gave."""
        for stream in call.streams:
            # A residual from before this call is as good as stale, even if this call gave none.
            self.store.drop(stream)
        if not call.sound:
            self.unsupported.update(call.streams)
        for stream, residual in call.residuals.items():
            self.learned.seen[stream] = tuple(call.order)
            if self.calibrate:
                self.norms.setdefault(stream, []).append(_residual.token_norms(residual, channel_dim=self.channel_dim))
            else:
                self.store.put(stream, residual)


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
        run.past_end.extend(streams)
        return forward()
    decision = session.decide(list(streams), step=step, sigma=sigma)
    try:
        revised = run.hindrance(streams) if decision.skip else None
        call = Call(run, streams, skip=decision.skip and revised is None)
        with visiting(call):
            result = forward()
        revised = revised or call.revised
        if call.skipping and not call.sound:
            # The host left blocks out or called them differently: what it returned is void, so once more, computed.
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
        self.residuals: dict[str, Tensor] = {}
        """Per stream, once a computed call is through."""
        self._store = run.store
        self._learned = run.learned
        self._broken = False
        self._previous: tuple[int, Any] | None = None  # the block before and its result
        self._input: Tensor | None = None  # image tokens of the stack's input, as the model holds them
        self._copy: Tensor | None = None  # the same before the model could write to them
        self._version = -1
        self._final: Tensor | None = None  # on a skip: image tokens of the stack's output

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

    def _compute(self, index: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = self.stack.arguments[index].hidden(args, kwargs)
        text = self.stack.arguments[index].text(args, kwargs)
        if hidden is None or not self._enter(index, hidden, text):
            self._broken = True
        self._previous = None  # the model is done with that result; holding on to it would cost memory
        result = original(*args, **kwargs)
        form = None if hidden is None else Form.of(result, hidden, text, kwargs)
        if form is None or hidden is None:
            self._broken = True
        if self._broken or form is None or hidden is None:
            return result
        self._learned.forms[index] = form
        if index == len(self.stack) - 1:
            self._broken = not self._finish(index, hidden, result)
        else:
            self._previous = index, result
        return result

    def _enter(self, index: int, hidden: Tensor, text: Tensor | None) -> bool:
        """Before block ``index`` computes: note the stack's input, or what the block before returned."""
        learned = self._learned
        if index == 0:
            image = self._image(index, hidden)
            if image is None:
                return False
            self._input = image.detach()
            if learned.in_place is not False:
                self._copy = self._input.clone()
            self._version = _version(self._input)
            return True
        if self._previous is not None and self._input is not None:
            learned.link(*self._previous, hidden, text)
            more = hidden.ndim == 3 and hidden.shape[1] > self._input.shape[1]
            if more and learned.side is None and self.stack.layouts[index].open:
                learned.locate_text(*self._previous, hidden)
        return self._image(index, hidden) is not None

    def _finish(self, index: int, hidden: Tensor, result: Any) -> bool:
        """After the last block: the residual of each stream. False if the stack's structure is not understood."""
        learned = self._learned
        before, self._input = self._input, None
        if before is None or not learned.settle(self.order):
            return False
        after = (places_of(result) or ())[learned.settled[index].hidden or 0]
        bounds = self._bounds(index, hidden, before.shape)
        if bounds is None or after.shape != hidden.shape:
            return False
        after = _narrow(after, *bounds)
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
        if before.ndim and before.shape[0] % len(self.streams) == 0:
            parts = zip(self.streams, self._split(after), self._split(before), strict=True)
            self.residuals = {stream: _residual.difference(a, b) for stream, a, b in parts}
        return True

    def _reuse(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of block ``index`` without running it, or ``None`` if there is none.

        At the first block that is no harm yet: with ``revised`` set, the call goes on computing.
        """
        hidden = self.stack.arguments[index].hidden(args, kwargs)
        text = self.stack.arguments[index].text(args, kwargs)
        form, place = self._learned.forms.get(index), self._learned.settled.get(index)
        known = hidden is not None and form is not None and place is not None and form.flags == flags(kwargs)
        if index == 0:
            reason = self._prepare(hidden) if known and hidden is not None else Decision.MISMATCH
            if reason is not None:
                self.revised, self.skipping = reason, False
                return None
        if not known or hidden is None or form is None or place is None or self._final is None:
            return None
        if index == len(self.stack) - 1:
            out = self._replaced(index, hidden, self._final)
        elif index == 0:
            # The host may add to this in place between blocks; what it passed in stays its own.
            out, text = hidden.clone(), None if text is None else text.clone()
        else:
            out = hidden
        return None if out is None else form.build(place, out, text)

    def _prepare(self, hidden: Tensor) -> Decision | None:
        """The stack's output from its input; or the reason why not."""
        image = self._image(0, hidden)
        if image is None or not image.ndim or image.shape[0] % len(self.streams):
            return Decision.MISMATCH
        taken: list[Tensor] = []
        for stream, part in zip(self.streams, self._split(image), strict=True):
            residual = self._store.take(stream, part)
            if isinstance(residual, Decision):
                return residual
            taken.append(residual)
        self._final = _residual.apply(image, taken[0] if len(taken) == 1 else torch.cat(taken))
        return None

    def _replaced(self, index: int, hidden: Tensor, image: Tensor) -> Tensor | None:
        """``hidden`` with its image tokens replaced."""
        bounds = self._bounds(index, hidden, image.shape)
        if bounds is None:
            return None
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
        if image is None or index == 0:
            front, back = (0 if n == "auto" else n for n in (layout.prefix, layout.suffix))
            enough = front + back == 0 or (hidden.ndim == 3 and hidden.shape[1] > front + back)
            return (front, back) if enough else None
        if hidden.shape == image and layout.open:
            return 0, 0
        if hidden.ndim != 3 or len(image) != 3:
            return None
        return layout.front_back(hidden.shape[1] - image[1], self._learned.side)

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.chunk(len(self.streams)) if len(self.streams) > 1 else (tensor,)


def _narrow(hidden: Tensor, front: int, back: int) -> Tensor:
    return hidden[:, front : hidden.shape[1] - back] if front or back else hidden


def _version(tensor: Tensor) -> int:
    """Counts the writes into ``tensor`` and its views; inference tensors do not count them."""
    return 0 if tensor.is_inference() else int(tensor._version)
