"""A run, and one evaluation in it: decided, carried out, committed, its residuals taken or made. Nothing else does that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from attrs import Factory, define, field
from torch._C import _functorch

import torch
from magpolicy import Decision, Session
from magpolicy.adapter import CallDecision
from magpolicy_torch.device._timer import Timer
from magpolicy_torch.evaluation._record import Record
from magpolicy_torch.evaluation._target import Pairs, Target
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.ranks._compared import Found, together
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals import _arithmetic
from magpolicy_torch.residuals._moments import Moments
from magpolicy_torch.residuals._samples import ResidualSamples
from magpolicy_torch.residuals._store import ResidualStore
from magpolicy_torch.residuals._turns import Turns
from torch import Tensor

Residuals = Mapping[str, tuple[Tensor, ...]]
"""Per stream, the residual of each pair."""
Measured = dict[str, Sequence[float]]
"""What was measured, of each stream of which there is something."""


@define(eq=False)
class Run:
    """One run of one model, or of one function; freed by :meth:`free`, which the session calls at its end."""

    __module__ = "magpolicy_torch"

    session: Session
    store: ResidualStore
    moments: Moments | None = None
    """Measures every residual, and none is kept, where this is a calibration run."""
    samples: ResidualSamples | None = None
    """Looks at every residual of a run that goes on as it would without."""
    channel_dim: int = -1
    """Where the channels of a residual are, for these two."""
    record: Record = Factory(Record)
    """What the report is made of."""
    group: RankGroup | None = None
    """The ranks that make this run together; ``None``: this process alone."""
    second: ResidualStore = field(init=False)
    """Residuals of the second stream of tokens of each stream, where the model has one (the audio of a video)."""
    turns: Turns = field(init=False, factory=Turns)
    """Whether residuals keep their direction, in a run that has to find out."""
    specs: dict[str, Any] = field(init=False, factory=dict)
    """Per stream, how the call was made whose residual is stored."""
    unsupported: set[str] = field(init=False, factory=set)
    """Streams whose calls cannot be bypassed."""
    yields: bool = field(init=False, default=False)
    """Whether another cache is at work in the model, so that everything computes that it lets through."""
    refused: set[str] = field(init=False, factory=set)
    """Streams whose last residual cannot be kept, because it is not finite on some rank."""

    def __attrs_post_init__(self) -> None:
        self.second = ResidualStore(self.store.offload, self.store.storage_dtype, copier=self.store.copier)
        self.store.losses = self.record.losses
        self.session.on_end(self.free)

    @property
    def measures(self) -> bool:
        """Whether something looks at every residual."""
        return self.moments is not None or self.samples is not None

    def yield_to(self, cache: str) -> None:
        """Leave the rest to another cache, which is in the model.

        Args:
            cache: which one, and what that means, in words.
        """
        self.yields = True
        self.record.other_cache = self.record.other_cache or cache
        self.record.problem(cache)

    def drop(self, stream: str) -> None:
        """Forget the residuals of a stream, and how they moved."""
        self.store.drop(stream)
        self.second.drop(stream)
        self.turns.drop(stream)

    def free(self) -> None:
        """Free every tensor."""
        self.store.clear()
        self.second.clear()
        self.turns.clear()
        self.specs.clear()  # they hold parts of the model

    def forecast(self, call: CallDecision, batch: int) -> tuple[Tensor, Tensor | None] | Decision:
        """The residuals that a skip uses, of the hidden states and of the second stream; or the reason why there are none.

        Args:
            batch: dimension along which the samples of the call's streams follow one another.
        """
        hidden = self._taken(call, self.store, batch)
        if isinstance(hidden, Decision) or not self.second.streams:
            return hidden if isinstance(hidden, Decision) else (hidden, None)
        second = self._taken(call, self.second, batch)
        return second if isinstance(second, Decision) else (hidden, second)

    def _taken(self, call: CallDecision, store: ResidualStore, batch: int) -> Tensor | Decision:
        taken: list[Tensor] = []
        for stream in call.streams:
            residual = store.take(stream.name, taken[0] if taken else None, stream.coefficients)
            if isinstance(residual, Decision):
                return residual
            if stream.coefficients:
                self.record.forecast(call.step, stream.name, store.held(stream.name))
            taken.append(residual)
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=batch)

    def make_room(self, call: CallDecision) -> None:
        """Before ``call`` computes: free the residuals that no later call uses, nor the comparison with its own result."""
        for store in (self.store, self.second):
            store.bring({})
            for stream in call.streams:
                if stream.check is None:
                    store.trim(stream.name, max(stream.keep - 1, 0))

    def residuals(self, call: CallDecision, pairs: Pairs, batch: int) -> Residuals:
        """The residuals of ``call``, by stream; empty without pairs, or if the batch does not divide into the streams."""
        count = len(call.streams)
        if not pairs or any(not before.ndim or before.shape[batch] % count for _, before in pairs):
            return {}
        if count == 1:
            return {call.streams[0].name: tuple([_arithmetic.difference(after, before) for after, before in pairs])}
        # Split first: a part of a difference would keep the whole of it alive.
        parts = [tuple(zip(a.chunk(count, batch), b.chunk(count, batch), strict=True)) for a, b in pairs]
        return {
            stream.name: tuple([_arithmetic.difference(*part[place]) for part in parts])
            for place, stream in enumerate(call.streams)
        }

    def compare(
        self, call: CallDecision, residuals: Residuals, device: torch.device | None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """By stream, the relative error of the forecast of its check, and the cosine between the last two changes.

        The first is empty without a safeguard, the second unless a plan's forecasts are what the general prior expects. With
        them the host waits for the device here, once a computed step, for the second at the first few of them; about a
        thousand tokens are compared, or a few hundred. Of ranks that share the run, all are looked at together.

        Args:
            device: where the call was made, if it is known.
        """
        lengths, turns = self._lengths(call, residuals), self._turns(call, residuals)
        if self.group is not None:
            self.refused = set()
            if self._ranks_compare(call, device):
                lengths, turns = self._together(self.group, call, residuals, lengths, turns)
        errors = {name: left / whole if whole else math.nan for name, (left, whole) in lengths.items()}
        cosines = {name: product / (one * other) if one * other else math.nan for name, (product, one, other) in turns.items()}
        return errors, cosines

    def _lengths(self, call: CallDecision, residuals: Residuals) -> Measured:
        """By stream with a check, the lengths of what its forecast leaves and of the residual."""
        found: Measured = {}
        for stream in call.streams:
            if stream.check is not None and stream.name in residuals:
                lengths = self.store.compared(stream.name, residuals[stream.name][0], stream.check[0], self.channel_dim)
                if lengths is not None:
                    found[stream.name] = _arithmetic.numbers(lengths)
        return found

    def _turns(self, call: CallDecision, residuals: Residuals) -> Measured:
        """By stream that compares its turn, the inner product of its last two changes, and the length of each."""
        found: dict[str, Tensor] = {}
        for stream in call.streams:
            if stream.compares_turn and stream.name in residuals:
                turn = self.turns.add(stream.name, residuals[stream.name][0], self.channel_dim)
                if turn is not None:
                    found[stream.name] = turn
            else:
                self.turns.drop(stream.name)
        turns: Measured = {}
        for name, turn in found.items():
            product, *squares = _arithmetic.numbers(turn)
            turns[name] = (product, *(square**0.5 for square in squares))
        return turns

    def _together(
        self, group: RankGroup, call: CallDecision, residuals: Residuals, lengths: Measured, turns: Measured
    ) -> tuple[Measured, Measured]:
        """The same of all ranks; and notes the streams whose residual is not finite on some rank."""
        stores, here = (self.store, self.second), []
        for stream in call.streams:
            made = residuals.get(stream.name, ())
            finite = all(store.finite(one) for store, one in zip(stores, made, strict=False))
            here.append(Found(bool(made), finite, lengths.get(stream.name), turns.get(stream.name)))
        found = dict(zip((stream.name for stream in call.streams), together(group, call.step, here), strict=True))
        self.refused = {name for name, one in found.items() if not (one.made and one.finite)}
        lengths = {name: one.lengths for name, one in found.items() if one.lengths is not None}
        return lengths, {name: one.turn for name, one in found.items() if one.turn is not None}

    def _ranks_compare(self, call: CallDecision, device: torch.device | None) -> bool:
        """Whether ranks have something to tell one another after ``call``; every rank answers alike."""
        if any(stream.check is not None or stream.compares_turn for stream in call.streams):
            return True
        looks_for_nan = device is None or device.type == "cpu"  # as the store does
        return looks_for_nan and self.moments is None and any(stream.keep > 0 for stream in call.streams)

    def keep(self, call: CallDecision, residuals: Residuals) -> None:
        """After ``call`` was committed: store its residuals, keep as many as later skips use, and free the rest."""
        for stream in call.streams:
            made = residuals.get(stream.name, ())
            if made and self.moments is not None:
                self.moments.add(stream.name, made[0], self.channel_dim, step=call.step)
            if made and self.samples is not None:
                self.samples.add(stream.name, made[0], self.channel_dim, step=call.step)
            keep = 0 if self.moments is not None or stream.name in self.unsupported else stream.keep
            for place, store in enumerate((self.store, self.second)):
                if place < len(made) and stream.name in self.refused:
                    store.refuse(stream.name, keep=keep)
                elif place < len(made):
                    store.put(stream.name, made[place], keep=keep, near=True)  # look_ahead follows
                else:  # what is from before this call is stale, even if this call gave nothing
                    store.drop(stream.name)

    def look_ahead(self, call: CallDecision) -> None:
        """After a call: begin to copy back what the next skips reuse, and free every other copy on the device."""
        if self.store.offload is not None and (self.store.away or self.second.away):
            wanted = {stream: 1 + len(coefficients) for stream, coefficients in call.upcoming_skips().items()}
            self.store.bring(wanted)
            self.second.bring(wanted)

    def send_away(self) -> None:
        """After a call that failed: free every copy on the device of residuals that are in main memory."""
        self.store.bring({})
        self.second.bring({})


def evaluate(
    run: Run,
    streams: Sequence[str],
    target: Target,
    *,
    step: int | None = None,
    earliest: int | None = None,
    levels: Sequence[float] | None = None,
) -> Any:
    """Evaluate ``target`` once: decide, compute or skip, commit.

    Args:
        run: the run this evaluation belongs to.
        streams: the stream of this call, or those batched in it, in batch order and of equal size.
        target: what is called.
        step: position in the run, if the host knows it.
        earliest: or the host's position; streams that are further already are at their next one.
        levels: noise level of each step of the run, for the trace; by default those of the session.

    Returns:
        the result of the target.
    """
    call = run.session.call(streams, step=step, earliest=earliest)
    if call is None:
        run.record.past_end.extend(streams)
        return target.plain()
    if levels is not None and call.step < len(levels):
        call.sigma = levels[call.step]
    device, skip, started = target.device, call.skip, perf_counter()
    residuals: Residuals = {}
    errors: dict[str, float] = {}
    cosines: dict[str, float] = {}
    timer = None if device is not None and device.type == "cpu" else Timer(device)
    try:
        reason, possible = None, _possible(run, streams)
        if skip:
            taken = run.forecast(call, target.batch) if possible else Decision.UNSUPPORTED
            result, reason = (None, taken) if isinstance(taken, Decision) else target.skip(*taken)
        if reason is Decision.ANSWERED:
            skip = False
        elif not skip or reason is not None:
            skip = False
            run.make_room(call)
            result, pairs = target.compute(useful=possible and (run.measures or call.useful))
            if isinstance(pairs, Decision):
                reason, pairs = pairs, None
            if pairs is None:
                run.unsupported.update(streams)
            residuals = run.residuals(call, pairs or (), target.batch)
            errors, cosines = run.compare(call, residuals, device)
    except BaseException:
        call.cancel()
        run.send_away()
        raise
    run.record.laps.append((skip or reason is Decision.ANSWERED, perf_counter() - started if timer is None else timer.stop()))
    if skip:
        call.commit()
    else:
        call.commit(reason, errors, cosines)
        run.keep(call, residuals)
    run.look_ahead(call)
    return result


def _possible(run: Run, streams: Sequence[str]) -> bool:
    """Whether these streams can skip, and residuals be kept, as far as it is known before the call."""
    if _functorch.peek_interpreter_stack() is not None:
        run.record.problem(Why.TRANSFORMED.says())
        return False
    return not run.yields and run.unsupported.isdisjoint(streams)
