"""Small models that two ranks run together, and loops around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pipes import PIPES
from typing import Any

import standins
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import torch
from diffusers import ContextParallelConfig
from torch import Tensor, distributed, nn

STEPS = 12
FLUX = PIPES["FluxPipeline"]
EVEN = {"prompt_embeds": torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))}
"""A text whose tokens two ranks can share."""


def rank() -> int:
    return distributed.get_rank()


class Block(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.number = number

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x + 0.1 * self.down(torch.tanh(self.up(x) + level))


class Net(nn.Module):
    """Blocks whose residuals turn with the level. ``spoil`` is called with the level and the hidden states of the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList(Block(number) for number in range(3))
        self.requires_grad_(False)
        self.spoil = lambda level, x: x

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, level)
        return self.spoil(level, x)


def sharded(reshard: bool = True) -> Net:
    """FSDP2, on blocks and root."""
    net, mesh = Net(), distributed.init_device_mesh("cpu", (2,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(net, mesh=mesh, reshard_after_forward=reshard)
    return net


def tensor_parallel() -> Net:
    net, mesh = Net(), distributed.init_device_mesh("cpu", (2,))
    for block in net.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return net


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def loop(handle: Any, seed: int = 0, steps: int = STEPS, streams: tuple[str, ...] = ("single",), counts: Any = None) -> Tensor:
    """One run; what it ends at. ``counts`` gets the collectives of each step."""
    x = noise(seed)
    counter = Collectives()
    with handle.run(steps=steps, sigmas=[1 - step / steps for step in range(steps)]):
        for step in range(steps):
            level = torch.tensor(1 - step / steps)
            with counter:
                for stream in streams:
                    with handle.stream(stream):
                        out = handle.module(x, level)
            if counts is not None:
                counts.append(list(counter.seen))
            counter.seen.clear()
            x = x - 0.1 * out
    return x


class Collectives(TorchDispatchMode):
    """Names of the collectives that are issued inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            self.seen.append(func.__name__)
        return func(*args, **kwargs or {})


@contextlib.contextmanager
def flux_over_two() -> Iterator[Any]:
    """A Flux pipeline whose tokens the ranks share."""
    pipe = FLUX.make()
    with standins.two_devices():
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        yield pipe


def paint(pipe: Any, way: str = "distilled", steps: int = STEPS, seed: int = 0) -> Tensor:
    negative = {"negative_prompt_embeds": -EVEN["prompt_embeds"]} if way == "true cfg" else {}
    return FLUX.run(pipe, way, steps, seed, **EVEN, **negative)


def said(handle: Any) -> dict[str, Any]:
    """What a run did, to be compared over ranks."""
    session = handle.runs[-1].session
    return {
        "decisions": [(entry.step, entry.stream, str(entry.decision)) for entry in session.trace],
        "replans": [(r.step, r.stream, r.measured, r.schedule.mask) for r in session.replans],
        "doubted": session.doubted,
        "source": handle.report.source,
    }
