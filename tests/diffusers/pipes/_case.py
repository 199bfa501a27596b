"""How a pipeline of diffusers is built tiny, called, and (told by reading its code) which branches its steps evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import seeds
from attrs import frozen

import torch

Branches = tuple[str, ...]


@frozen(kw_only=True)
class Way:
    """One way to call a pipeline (a layout of guidance, an optional input)."""

    arguments: Callable[[Any], dict[str, Any]]
    """Keyword arguments for the pipeline given: prompts as embeddings, size, guidance. Without ``num_inference_steps``,
    ``generator`` and ``output_type``, which the test gives."""
    calls: tuple[Branches, ...] | Callable[[int, int], tuple[Branches, ...]]
    """The denoiser's calls at each step, in order, each with the branches it holds, in batch order:
    ``(("cond",), ("uncond",))`` is sequential guidance, ``(("uncond", "cond"),)`` batched. Where it changes during the run: a
    function of ``(step, steps)``."""
    named: bool = False
    """Whether the pipeline itself tells the branches apart by ``cache_context``."""

    loops: int = 1
    """Whole denoising loops that the call runs one after the other; ``calls`` then has a step's calls in all of them, those of
    the first loop first."""

    def at(self, step: int, steps: int) -> tuple[Branches, ...]:
        """The calls of ``step`` of a run of ``steps``, in all loops."""
        return self.calls(step, steps) if callable(self.calls) else self.calls

    def sequence(self, steps: int) -> list[tuple[int, int, Branches]]:
        """Every call in order: its loop, its step there, and the branches it holds."""
        found = []
        for loop in range(self.loops):
            for step in range(steps):
                calls = self.at(step, steps)
                each = len(calls) // self.loops
                found += [(loop, step, branches) for branches in calls[loop * each : (loop + 1) * each]]
        return found


@frozen(kw_only=True)
class Pipe:
    """One pipeline class, tiny."""

    cls: str
    """Name of the class in ``diffusers``."""
    make: Callable[[], Any]
    """A fresh pipeline with tiny random weights, on the CPU, no progress bar, no weight zero; always the same weights."""
    denoisers: Mapping[str, str]
    """Component name to transformer class (a name in the zoo), those that denoise."""
    ways: Mapping[str, Way]
    """By a readable name; the first one is the plain one."""
    steps_argument: str = "num_inference_steps"
    strength: bool = False
    """Whether it takes ``strength`` (and the first way's arguments have an image)."""
    custom_sigmas: bool = False
    """Whether it takes ``sigmas``."""
    notes: str = ""

    def run(self, pipe: Any, way: str, steps: int, seed: int = 0, **more: Any) -> torch.Tensor:
        """The latents (or what comes closest) after one call."""
        arguments = self.ways[way].arguments(pipe) | {self.steps_argument: steps} | more
        arguments.setdefault("generator", torch.Generator().manual_seed(seed))
        arguments.setdefault("output_type", "latent")
        seeds.seed(seed)  # some pipelines draw without their generator
        with torch.no_grad():
            result = pipe(**arguments, return_dict=False)
        while isinstance(result, (tuple, list)):
            result = result[0]
        return torch.as_tensor(result)


def dense(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """``model`` with its zero-initialised parameters made small random ones, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.numel() > 1 and not parameter.abs().any():
            parameter.data.normal_(std=0.05, generator=generator)
    return model.eval().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal, always the same for one seed and shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
