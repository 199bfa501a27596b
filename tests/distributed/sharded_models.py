"""Models whose weights or activations two ranks share, in every way that torch and diffusers have, beside the same model in one
process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import standins
from attrs import frozen
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from zoo import CASES
from zoo._case import Case, Draw

import torch
from diffusers import TensorParallelConfig
from torch import Tensor, distributed, nn

STEPS = 8


@frozen
class Shared:
    """One way, beside one process."""

    alone: Callable[[], nn.Module]
    spread: Callable[[], nn.Module]
    call: Callable[[nn.Module, float, float], Tensor]
    """Of one of the models, at a noise level, with so much that a calibration has not seen."""


def shared(kind: str) -> Shared:
    how, _, rest = kind.partition(": ")
    if how == "FSDP2":
        where, when = rest.split(", ")
        case = CASES["FluxTransformer2DModel"]
        return Shared(case.make, lambda: _fully_sharded(case, where, reshard=when == "resharded"), _of_zoo(case))
    if how == "tensor parallel":
        case = CASES[rest]
        return Shared(case.make, lambda: _tensor_parallel(case), _of_zoo(case))
    dim = {"replicated": None, "tokens": 1, "channels": 2}[rest]
    return Shared(Net, lambda: _of_dtensors(Net()), lambda net, level, odd: net(_placed(net, _input(level, odd), dim)))


def _of_zoo(case: Case) -> Callable[[Any, float, float], Tensor]:
    def call(model: Any, level: float, odd: float) -> Tensor:
        kwargs = case.inputs(Draw(level=level))
        return model(**kwargs | {case.hidden: _moved(kwargs[case.hidden], level, odd)}, return_dict=False)[0]

    return call


def _moved(x: Tensor, level: float, odd: float) -> Tensor:
    """With ``odd``, from the middle on an input turns away from where it went so far."""
    return x + odd * x.roll(1, -1) * (level < 0.5)


def _fully_sharded(case: Case, where: str, *, reshard: bool) -> Any:
    model = case.make()
    for block in case.stack(model):
        fully_shard(block, reshard_after_forward=reshard)
    return fully_shard(model, reshard_after_forward=reshard) if where == "root" else model


def _tensor_parallel(case: Case) -> Any:
    model: Any = case.make()
    with standins.tensor_parallel_on_cpu():
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
    return model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(nn.functional.gelu(self.inner(self.norm(x))))


class Net(nn.Module):
    """A stack of blocks between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enters, self.blocks, self.leaves = nn.Linear(16, 16), nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 16)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enters(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.leaves(x)
        return found


def _input(level: float, odd: float) -> Tensor:
    x = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1))
    return _moved(x * level + 1 - level, level, odd)


def _of_dtensors(net: Net) -> Net:
    distribute_module(net, distributed.init_device_mesh("cpu", (2,)))
    return net


def _placed(net: Any, x: Tensor, dim: int | None) -> Tensor:
    """As the weights of ``net`` are: a DTensor split along ``dim``, or as it is."""
    mesh = getattr(net.enters.weight, "device_mesh", None)
    return x if mesh is None else distribute_tensor(x, mesh, [Replicate() if dim is None else Shard(dim)])
