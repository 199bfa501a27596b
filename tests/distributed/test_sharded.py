"""Weights or activations spread over two ranks, by FSDP, tensor parallelism, DTensor or data parallelism: the same runs as in
one process, and a skipped block exchanges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair

STEPS = 8
RATIOS = [1.0, 0.99, 0.98, 1.01, 0.97, 0.99, 0.98, 0.96]
LIMITS: dict[str, Any] = {"threshold": 0.05, "max_skips": 2, "retention": 0.2}
CLOSE = 1e-5


def distance(ours: list[Any], theirs: list[Any]) -> float:
    """Largest difference of any two tensors, over the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Holds, as its last item, how many collectives were issued since that item was put there."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts = [0]

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace in ("c10d", "_c10d_functional") and "wait" not in function.name():
                counts[-1] += 1
            return function(*args, **(kwargs or {}))

    with Counter():
        yield counts


def in_a_loop(make: Any, call: Any, **settings: Any) -> dict[str, Any]:
    """A run of ``STEPS`` steps of ``make()``, each of them ``call(model, step)``.

    Returns:
        the results; per step the collectives that were issued; the mask, the forecasts and the calibration.
    """
    import magpolicy
    import torch

    model, results = make(), []
    with magpolicy.attach(model, **settings) as handle, torch.no_grad(), counted() as counts:
        with handle.run(steps=STEPS, sigmas=[1 - step / STEPS for step in range(STEPS)]):
            for step in range(STEPS):
                handle.go_to(step)
                counts.append(0)
                results.append(_whole(call(model, step)))
            counts.append(0)
        report = handle.report
        measured = handle.calibration if settings.get("calibrate") else None
    return {
        "results": results, "counts": counts[1:-1], "mask": list(report.schedule.mask), "problems": report.problems,
        "reasons": report.reasons, "calibration": measured,
    }  # fmt: skip


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def case_of(cls: str, **changes: Any) -> Any:
    from attrs import evolve
    from zoo import CASES

    case = CASES[cls]
    return evolve(case, config={**case.config, **changes})


def zoo_call(case: Any) -> Any:
    """Calls a model of the zoo at a step, with noise that changes smoothly."""
    from zoo._case import Draw

    return lambda model, step: case.call(model, Draw(level=1 - step / STEPS))[0]


def fsdp(where: str, reshard: bool, **settings: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    case = case_of("FluxTransformer2DModel")

    def sharded() -> Any:
        model = case.make()
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            fully_shard(block, reshard_after_forward=reshard)
        if where == "root":
            fully_shard(model, reshard_after_forward=reshard)
        return model

    call = zoo_call(case)
    alone = in_a_loop(case.make, call, **settings)
    ours = in_a_loop(sharded, call, **settings)
    full = in_a_loop(sharded, call)if False else None
    return {"far": distance(ours["results"], alone["results"]), "ours": ours, "alone": alone}


def tensor_parallel(cls: str, **settings: Any) -> dict[str, Any]:
    import standins

    from diffusers import TensorParallelConfig

    case = case_of(cls)

    def sharded() -> Any:
        model = case.make()
        with standins.tensor_parallel_on_cpu():
            model.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
        return model

    call = zoo_call(case)
    alone = in_a_loop(case.make, call, **settings)
    ours = in_a_loop(sharded, call, **settings)
    return {"far": distance(ours["results"], alone["results"]), "ours": ours, "alone": alone}


def own_model(distributes: bool) -> Any:
    """Some blocks in a loop; with ``distributes`` each of its weights is a DTensor on every rank."""
    import torch
    from torch import nn
    from torch.distributed.tensor import distribute_module, init_device_mesh

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Any) -> Any:
            return x + self.outer(nn.functional.gelu(self.inner(self.norm(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enters, self.blocks, self.leaves = nn.Linear(16, 16), nn.ModuleList(Block() for _ in range(3)), nn.Linear(16, 16)

        def forward(self, x: Any) -> Any:
            x = self.enters(x)
            for block in self.blocks:
                x = block(x)
            return self.leaves(x)

    torch.manual_seed(0)
    net = Net().eval()
    return distribute_module(net, init_device_mesh("cpu", (2,))) if distributes else net


def dtensors(dim: int | None, **settings: Any) -> dict[str, Any]:
    """A model whose activations are DTensors, split along ``dim``; ``None``: each rank has all of them."""
    import torch
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    def plain(model: Any, step: int) -> Any:
        return model(torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1)) * (1 - step / STEPS) + step / STEPS)

    def spread(model: Any, step: int) -> Any:
        x = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(1)) * (1 - step / STEPS) + step / STEPS
        mesh = model.enters.weight.device_mesh
        return model(distribute_tensor(x, mesh, [Replicate() if dim is None else Shard(dim)]))

    alone = in_a_loop(lambda: own_model(False), plain, **settings)
    ours = in_a_loop(lambda: own_model(True), spread, **settings)
    return {"far": distance(ours["results"], alone["results"]), "ours": ours, "alone": alone}


def wrapped(how: str, **settings: Any) -> dict[str, Any]:
    import torch
    from pipes import PIPES

    import magpolicy

    case = PIPES["FluxPipeline"]
    found = []
    for wraps in (False, True):
        pipe = case.make()
        if wraps:
            model = pipe.transformer
            if "compiled" in how:
                model = torch.compile(model, backend="eager")
            if "DDP" in how:
                model = torch.nn.parallel.DistributedDataParallel(model.requires_grad_(True))
            if "DataParallel" in how:
                model = torch.nn.DataParallel(model)
            pipe.transformer = model
        with magpolicy.attach(pipe, **settings) as handle:
            out = case.run(pipe, "true cfg", STEPS)
            found.append((out, handle.report))
    return {"far": distance([found[1][0]], [found[0][0]]), "mask": list(found[1][1].schedule.mask), "pr": found[1][1].problems}
