"""A request's denoising loop as a run: where it is on the noise schedule, and which stream a call belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import magpolicy_torch
import torch
from magpolicy import AttachRequest
from magpolicy.adapter import ScheduleSpan
from magpolicy_sglang._seam import SeamCall
from magpolicy_torch.adapter import BlockStack, HostRun
from torch import nn


def span_of(timesteps: list[float], sigmas: list[float], full: float, boundary: float | None) -> ScheduleSpan:
    """The evaluations of a loop, one for each timestep.

    Args:
        timesteps: as the loop goes through them.
        sigmas: the scheduler's noise levels, or none.
        full: the timestep of pure noise.
        boundary: the timestep below which the second of two experts works.
    """
    count = len(timesteps)
    levels = sigmas[:count]
    if len(levels) < count or max(levels) > 1.001:
        levels = [timestep / full for timestep in timesteps]
    known = all(0 <= level <= 1.001 for level in levels)
    switch = None if boundary is None else sum(timestep >= boundary for timestep in timesteps)
    flow = tuple(max(level, 1e-6) for level in levels) if known else ()
    return ScheduleSpan(tuple(1 - i / count for i in range(count)), flow, expert_step=switch)


class RequestRun(HostRun):
    """The run of one request.

    Args:
        request: what was asked of magpolicy.
        span: the evaluations of its loop.
        req: the engine's request.
        guidance: the guidance scale, where there is guidance in two calls.
    """

    def __init__(self, request: AttachRequest, span: ScheduleSpan, req: Any, guidance: float | None) -> None:
        super().__init__(request, request.session_over(span, guidance=guidance), noise=span.flow or None)
        self._levels = span.flow or None
        self._req = req

    def call(self, model: nn.Module, stack: BlockStack, step: int, original: Callable[[], Any], device: torch.device) -> Any:
        """Evaluate one call of ``model``; the request says which branch of guidance it is."""
        self.go_to(step)
        stream, run, first = "uncond" if self._req.is_cfg_negative else "cond", self.on(stack), stack.entrance
        assert first is not None
        target = SeamCall(model, first, original, self._req, run, device)
        return magpolicy_torch.evaluate(run, (stream,), target, earliest=step, levels=self._levels)
