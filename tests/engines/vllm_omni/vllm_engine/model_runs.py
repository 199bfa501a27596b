"""Runs of one transformer class of the engine, in a pipeline of the tests' own: the engine's loop would need all other parts.

The pipeline has a scheduler of the engine's and steps it; each step calls the model once, as the engine's pipelines call it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm_omni.diffusion.forward_context import set_forward_context
from vllm_omni.diffusion.models.schedulers import FlowMatchEulerDiscreteScheduler
from vllm_omni.diffusion.profiler.diffusion_pipeline_profiler import DiffusionPipelineProfilerMixin
from zoo._case import tensors

import magpolicy
import torch
from magpolicy_vllm_omni._pipeline import denoisers_of
from torch import nn

from . import engine
from .zoo import LANGUAGE_MODELS, UNTOLD, ZOO, Model


class Loop(nn.Module, DiffusionPipelineProfilerMixin):
    """A pipeline around one model. With ``still``, all steps are given the same."""

    def __init__(self, case: Model) -> None:
        super().__init__()
        runner = engine.worker("flux").model_runner
        self.case, self.od_config = case, runner.od_config
        self.transformer = case.make(runner)
        scheduler = FlowMatchEulerDiscreteScheduler()
        if case.scheduler:
            self.scheduler = scheduler
        self._steps_by = scheduler
        self._context = {"vllm_config": runner.vllm_config, "omni_diffusion_config": runner.od_config}
        self.results: list[list[torch.Tensor]] = []

    def forward(self, req: Any, *, still: bool = False) -> None:
        """Evaluate the model at each step of the request."""
        steps = req.sampling_params.num_inference_steps
        self._steps_by.set_timesteps(steps)
        self.results = []
        given, name = self.case.call(), self.case.timestep()
        with torch.inference_mode(), set_forward_context(**self._context):
            for step, timestep in enumerate(self._steps_by.timesteps):
                share = torch.ones_like(given[name]) * timestep / 1000
                level = given[name] if still else share if float(given[name].max()) <= 1 else share * 1000
                calls = given | {name: level}
                if not still:
                    calls = {key: _nearer(value, step / steps) if key in _DENOISED else value for key, value in calls.items()}
                found = tensors(self.transformer(**calls))
                self.results.append(found)
                self._steps_by.step(torch.zeros_like(found[0]), timestep, torch.zeros_like(found[0]))


_DENOISED = ("hidden_states", "audio_hidden_states", "x")


def _nearer(value: Any, share: float) -> Any:
    return [_nearer(item, share) for item in value] if isinstance(value, list) else value * (1 - share / 2)


@contextmanager
def _counted(loop: Loop, blocks: Sequence[nn.Module]) -> Iterator[list[int]]:
    """How many parts of the blocks that have weights ran, at each of two steps."""
    ran = [0, 0]
    inner = [part for block in blocks for part in block.modules() if list(part.parameters(recurse=False))]
    hooks = [part.register_forward_pre_hook(lambda *_: _count(ran, len(loop.results))) for part in inner]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def _count(ran: list[int], step: int) -> None:
    ran[step] += 1


def model(which: str) -> dict[str, Any]:
    """A model in full, attached and never skipping, by a plan, and skipping what it has just computed."""
    loop, request = Loop(ZOO[which]), engine.request("flux", 12)
    loop(request)
    plain = loop.results
    with magpolicy.attach(loop, speedup=1.0, learn=False) as handle:
        loop(request)
        same = all(torch.equal(a, b) for one, other in zip(plain, loop.results, strict=True) for a, b in _pairs(one, other))
        scope, stack = handle.scope, handle.runs[-1].stack
        blocks = handle.models[0].stack.blocks
    with magpolicy.attach(loop, speedup=2.0, learn=False) as handle:
        loop(request)
        report, plan = handle.report, handle.runs[0].session.schedule
        planned = {
            "mask": _mask(report.schedule), "planned": _mask(plan), "problems": list(report.problems),
            "held": handle.residuals_held,
        }  # fmt: skip
    loop.scheduler = loop._steps_by  # without it, two calls at one timestep are one step
    with magpolicy.attach(loop, schedule=magpolicy.Schedule.from_mask([1, 0]), learn=False), _counted(loop, blocks) as ran:
        with torch.inference_mode():
            loop(engine.request("flux", 2), still=True)
        computed, skipped = loop.results
    return planned | {
        "scope": scope, "stack": stack, "same": same, "ran": [count > 0 for count in ran],
        "off": max(float((a - b).abs().max() / a.abs().max()) for a, b in _pairs(computed, skipped)),
    }  # fmt: skip


def _pairs(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(one, other, strict=True)


def _mask(schedule: Any) -> str:
    return "".join("C" if computed else "." for computed in schedule.mask)


def refused_models() -> list[str]:
    """The classes that the adapter does not take for one that denoises, of those that it should not."""
    found = []
    for path in (*LANGUAGE_MODELS, *UNTOLD):
        module, _, name = path.partition(":")
        kind = getattr(importlib.import_module(f"vllm_omni.diffusion.models.{module}"), name)
        bare = kind.__new__(kind)
        nn.Module.__init__(bare)
        pipeline = nn.Module()
        pipeline.transformer = bare
        if not denoisers_of(pipeline):
            found.append(name)
    return found


def zoo() -> dict[str, str]:
    """The classes that can be run here, and where each is."""
    return {name: case.path for name, case in ZOO.items()}
