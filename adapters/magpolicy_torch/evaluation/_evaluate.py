"""One evaluation: decided, carried out, committed, and its residuals taken or made. There is no other such place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from attrs import define
from torch._C import _functorch

import torch
from magpolicy import ArgumentError, Decision
from magpolicy_torch.device._timer import Timer
from magpolicy_torch.evaluation._run import Pairs, Run
from magpolicy_torch.residuals import _arithmetic
from torch import Tensor

_TRANSFORMED = "called inside of a torch.func transform (vmap, grad, ...), where nothing can be kept: such calls compute"


class Target(Protocol):
    """What is called, and how it is done with or without its heavy part."""

    @property
    def batch(self) -> int:
        """Dimension of the hidden states along which samples follow one another."""

    @property
    def device(self) -> torch.device | None:
        """Where the call is made, if it can be told."""

    def plain(self) -> Any:
        """The result of the call as it is."""

    def compute(self, *, useful: bool) -> tuple[Any, Pairs | None]:
        """The result, and what came out of the heavy part and went in; ``None`` if that cannot be told.

        Args:
            useful: whether anything comes of these.
        """

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Any, Decision | None]:
        """The result without the heavy part; or the reason why there is none."""


def evaluate(
    run: Run,
    streams: Sequence[str],
    target: Target,
    *,
    step: int | None = None,
    earliest: int | None = None,
    levels: Sequence[float] | None = None,
) -> Any:
    """Evaluate ``target`` once: decide, compute or skip, commit what was done.

    Args:
        run: the run this evaluation belongs to.
        streams: the stream of this call, or those batched in it, in batch order and of equal size.
        target: what is called.
        step: position in the run, if the host knows it.
        earliest: or the position the host is at: streams that went further are at their next one.
        levels: noise level of each step of the run, for the trace; by default those the session was given.

    Returns:
        what the target returned.
    """
    call = run.session.call(streams, step=step, earliest=earliest)
    if call is None:
        run.record.past_end.extend(streams)
        return target.plain()
    if levels is not None and call.step < len(levels):
        call.sigma = levels[call.step]
    timer, skip = Timer(target.device), call.skip
    try:
        reason, possible = None, _possible(run, streams)
        if skip:
            taken = run.forecast(call, target.batch) if possible else Decision.UNSUPPORTED
            result, reason = (None, taken) if isinstance(taken, Decision) else target.skip(*taken)
        if not skip or reason is not None:
            skip = False
            run.make_room(call)
            result, pairs = target.compute(useful=possible and (run.moments is not None or call.useful))
            if pairs is None:
                run.unsupported.update(streams)
            residuals = run.residuals(call, pairs or (), target.batch)
            errors = run.errors(call, residuals)
    except BaseException:
        call.cancel()
        run.send_away()
        raise
    timer.stop()
    run.record.laps.append((skip, timer))
    if skip:
        call.commit()
    else:
        call.commit(reason, errors)
        run.keep(call, residuals)
    run.look_ahead(call)
    return result


def _possible(run: Run, streams: Sequence[str]) -> bool:
    """Whether these streams can skip, and residuals be kept, as far as it is known before the call."""
    if _functorch.peek_interpreter_stack() is not None:
        run.record.problem(_TRANSFORMED)
        return False
    return run.unsupported.isdisjoint(streams)


@define(eq=False)
class FunctionCall:
    """A function whose argument and result are hidden states."""

    function: Callable[[Tensor], Tensor]
    x: Tensor
    batch: int = 0

    @property
    def device(self) -> torch.device:
        return self.x.device

    def plain(self) -> Tensor:
        return self.function(self.x)

    def compute(self, *, useful: bool) -> tuple[Tensor, Pairs]:
        before = self.x.detach().clone()  # the function may write into its argument
        result = self.function(self.x)
        if result.shape != before.shape:
            raise ArgumentError(f"fn returned shape {tuple(result.shape)} for {tuple(before.shape)}; both must be equal")
        return result, [(result, before)]

    def skip(self, residual: Tensor, second: Tensor | None) -> tuple[Tensor | None, Decision | None]:
        if not fits(residual, self.x):
            return None, Decision.MISMATCH
        return _arithmetic.apply(self.x, residual), None


def fits(residual: Tensor, hidden: Tensor) -> bool:
    """Whether ``residual`` was computed from what looks like ``hidden``."""
    return residual.shape == hidden.shape and residual.dtype is hidden.dtype and residual.device == hidden.device
