"""The lab's sampling loop: one run of a model with guidance, under whatever decides about its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from attrs import frozen
from benchmarks.quality.models import NONE, LabModel

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

SAMPLERS = ("euler", "unipc")


class Control(Protocol):
    """What a method does around a run and around each evaluation."""

    def run(self, sigmas: list[float]) -> AbstractContextManager[Any]: ...

    def stream(self, name: str) -> AbstractContextManager[Any]: ...


class Nothing:
    """The full run."""

    def run(self, sigmas: list[float]) -> AbstractContextManager[Any]:
        return nullcontext()

    def stream(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()


@frozen
class Job:
    """What is generated: so many samples of these labels from this noise."""

    model: LabModel
    noise: Tensor
    labels: Tensor
    steps: int
    sampler: str = "euler"
    levels: Sequence[float] | None = None
    """The noise levels of an Euler run, in place of the model's own."""

    @classmethod
    def of(
        cls, model: LabModel, *, seed: int, count: int, steps: int | None = None, sampler: str = "euler", start: int = 0
    ) -> Job:
        return cls(model, model.noise(seed, count), model.labels(count, start), steps or model.steps, sampler)

    def scheduler(self) -> Any:
        """diffusers' scheduler, its timesteps set."""
        if self.levels is not None:
            made = FlowMatchEulerDiscreteScheduler()
            made.set_timesteps(sigmas=list(self.levels))
        elif self.sampler == "euler":
            made = FlowMatchEulerDiscreteScheduler(shift=self.model.shift)
            levels = [1 - i / self.steps for i in range(self.steps)]
            made.set_timesteps(sigmas=levels)
        else:
            made = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.model.shift)
            made.set_timesteps(self.steps)
        return made

    @property
    def sigmas(self) -> list[float]:
        """The noise levels evaluated, ``steps`` of them."""
        return [float(s) for s in self.scheduler().sigmas[: self.steps]]


@torch.inference_mode()
def generate(job: Job, network: Any, control: Control | None = None) -> Tensor:
    """The final latents. Guidance makes two evaluations a step, in streams ``cond`` and ``uncond``."""
    control = control or Nothing()
    scheduler, latents, model = job.scheduler(), job.noise, job.model
    sigmas = scheduler.sigmas[: job.steps]
    empty = torch.full_like(job.labels, NONE)
    with control.run([float(s) for s in sigmas]):
        for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
            level = sigma.float().expand(len(latents))
            with control.stream("cond"):
                cond = model.velocity(network, latents, level, job.labels)
            with control.stream("uncond"):
                uncond = model.velocity(network, latents, level, empty)
            velocity = uncond + model.guidance * (cond - uncond)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
