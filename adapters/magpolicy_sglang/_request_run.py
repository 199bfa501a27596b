"""A request's denoising loop as a run: where it is on the noise schedule, and which stream a call belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import evolve

import magpolicy_torch
import torch
from magpolicy import AttachRequest
from magpolicy_sglang._seam import SeamCall
from magpolicy_torch.adapter import BlockStack, HostRun, Levels, classes_of
from torch import nn


def placed(scheduler: Any, timesteps: Sequence[float]) -> tuple[Levels, int]:
    """The schedule that a loop over ``timesteps`` is of, and where on it the loop begins (an image to start from).

    A scheduler that lists other timesteps tells no levels: they are read from the timesteps then.
    """
    known, whole = Levels.of(scheduler), tuple(map(float, timesteps))
    if known is not None and known.timesteps[-len(whole) :] == whole:
        return known, len(known.timesteps) - len(whole)
    if known is not None:
        return evolve(known, timesteps=whole, sigmas=()), 0
    return Levels(whole, 1000.0, ()), 0


class RequestRun(HostRun):
    """The run of one request.

    Args:
        request: what was asked of magpolicy.
        levels: the schedule.
        start: where on it the loop begins.
        req: the engine's request.
        guidance: the guidance scale, where there is guidance in two calls.
        boundary: the timestep below which the second of two experts works.
    """

    def __init__(
        self, request: AttachRequest, levels: Levels, start: int, req: Any, guidance: float | None, boundary: float | None
    ) -> None:
        span = levels.span(None if boundary is None else boundary / levels.full)
        self._levels = levels.noise()
        super().__init__(request, request.session_over(span, guidance=guidance), start, self._levels)
        self._start, self._req = start, req

    def call(self, model: nn.Module, stack: BlockStack, step: int, original: Callable[[], Any], device: torch.device) -> Any:
        """Evaluate one call of ``model`` in the loop's step; the request says which branch of guidance it is."""
        self.go_to(self._start + step)
        if not self.model:
            self.model, *_ = classes_of(model)
        stream, run, first = "uncond" if self._req.is_cfg_negative else "cond", self.on(stack), stack.entrance
        assert first is not None
        target = SeamCall(model, first, original, self._req, run, device)
        return magpolicy_torch.evaluate(run, (stream,), target, earliest=self.step, levels=self._levels)
