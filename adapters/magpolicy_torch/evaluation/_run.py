"""What lives as long as a run: its session, the residuals that are kept, and what its calls have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, define, field

import torch
from magpolicy import Decision, Session
from magpolicy.adapter import CallDecision
from magpolicy_torch.blocks._layout import ObservedLayout
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.device._offload import look_ahead
from magpolicy_torch.host._report import Record
from magpolicy_torch.residuals import _arithmetic, _guard
from magpolicy_torch.residuals._moments import Moments
from magpolicy_torch.residuals._store import ResidualStore
from torch import Tensor


@define(eq=False)
class Run:
    """What belongs to one run on one stack; freed by :meth:`free`, which the session calls at its end."""

    __module__ = "magpolicy_torch"

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
    learned: ObservedLayout = field(init=False)
    """What this run's calls showed, where nothing is known from before."""
    seen: dict[str, tuple[int, ...]] = field(init=False, factory=dict)
    """Per stream, the blocks that ran in the call whose residual is stored."""
    call: CallDecision | None = field(init=False, default=None)
    """The call that is under way, or was the last."""
    computed: tuple[Mapping[str, tuple[Tensor, ...]], Sequence[int]] | None = field(init=False, default=None)
    """What that call computed: per stream its residuals, if it gave any, and the blocks that ran."""
    unsupported: set[str] = field(init=False, factory=set)
    """Streams whose calls cannot be bypassed."""

    def __attrs_post_init__(self) -> None:
        self.learned = ObservedLayout.of(self.stack.kinds, self.stack.layouts)
        self.also = ResidualStore(self.store.offload, self.store.storage_dtype, copier=self.store.copier)
        self.store.losses = self.record.losses
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

    def taken(self, streams: Sequence[str], likes: Sequence[Any], store: ResidualStore, batch: int) -> Tensor | Decision:
        """The residuals forecast for ``streams`` in one tensor, one after another along dimension ``batch``; or the reason why
        not.

        Args:
            likes: per stream a tensor, or what has the ``shape``, ``dtype`` and ``device`` of one, that it is to be added to.
        """
        assert self.call is not None
        taken: list[Tensor] = []
        for stream, like in zip(self.call.streams, likes, strict=True):
            residual = store.take(stream.name, like, stream.coefficients)
            if isinstance(residual, Decision):
                return residual
            if stream.coefficients:
                self.record.forecast(self.call.step, stream.name, store.held(stream.name))
            taken.append(residual)
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=batch)

    def applied(self, streams: Sequence[str], tensor: Tensor, store: ResidualStore, batch: int) -> Tensor | Decision:
        """``tensor``, in which the samples of ``streams`` follow one another along dimension ``batch``, plus the residual
        forecast for each; or the reason why not."""
        taken = self.taken(streams, split(tensor, len(streams), batch), store, batch)
        return taken if isinstance(taken, Decision) else _arithmetic.apply(tensor, taken)

    def wants(self) -> bool:
        """Whether anything comes of what the call under way computes: a later skip, a calibration, or a comparison."""
        return self.moments is not None or (self.call is not None and self.call.useful)

    def make_room(self, call: CallDecision) -> None:
        """Before ``call`` computes: let go of what no step after this one can use."""
        for stream in call.streams:
            for store in (self.store, self.also):
                _guard.make_room(stream, store)

    def look_ahead(self, call: CallDecision) -> None:
        """After ``call``: have what the next skips reuse on its way to the device."""
        if self.store.offload is not None:
            look_ahead(call, self.store, self.also)

    def send_away(self) -> None:
        """A skip computes after all, or failed: let go of every copy on the device of what is in main memory."""
        for store in (self.store, self.also):
            store.bring({})

    def commit(self, call: CallDecision, revised: Decision | None) -> None:
        """Make ``call`` final, and store what it computed. Forget what is of no use after it."""
        computed, self.computed = self.computed, None
        if computed is None:
            call.commit(revised)
            return
        given, order = computed
        errors = {}
        for stream in call.streams:
            if residuals := given.get(stream.name, ()):
                self.seen[stream.name] = tuple(order)
                if self.moments is not None:
                    self.moments.add(stream.name, residuals[0], self.channel_dim, step=call.step)
                error = _guard.error(stream, self.store, residuals[0], self.channel_dim)
                if error is not None:
                    errors[stream.name] = error
        call.commit(revised, errors)
        for stream in call.streams:
            residuals = given.get(stream.name, ())
            keep = 0 if self.moments is not None or stream.name in self.unsupported else stream.keep
            for place, store in enumerate((self.store, self.also)):
                if place < len(residuals):
                    store.put(stream.name, residuals[place], keep=keep, near=True)  # look_ahead or send_away follows
                else:  # what is from before this call is stale, even if this call gave nothing
                    store.drop(stream.name)


def differences(streams: Sequence[str], pairs: Sequence[tuple[Tensor, Tensor]], batch: int) -> dict[str, tuple[Tensor, ...]]:
    """Per stream, the residual of each pair (after, before); empty if the batch does not divide into the streams."""
    if not pairs[0][1].ndim or any(before.shape[batch] % len(streams) for _, before in pairs):
        return {}
    # Split first: a part of a difference would keep the whole of it alive.
    count = len(streams)
    found = [map(_arithmetic.difference, split(a, count, batch), split(b, count, batch)) for a, b in pairs]
    return dict(zip(streams, zip(*found, strict=True), strict=True))


def split(tensor: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    """``count`` equal parts of ``tensor`` along ``dim``."""
    return tensor.chunk(count, dim=dim) if count > 1 else (tensor,)
