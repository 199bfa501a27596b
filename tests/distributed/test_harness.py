"""The pair of ranks itself: what comes back, and what is told when a case fails."""

from __future__ import annotations

import pytest
from harness import Failed, Pair


def sums(value: int) -> dict[str, float]:
    import torch

    total = torch.tensor([float(value + torch.distributed.get_rank())])
    torch.distributed.all_reduce(total)
    return {"rank": torch.distributed.get_rank(), "total": total.item()}


def hangs() -> None:
    import torch

    if torch.distributed.get_rank() == 0:
        torch.distributed.barrier()
    else:
        _long_work()


def _long_work() -> None:
    import time

    time.sleep(300)


def raises_on_one() -> None:
    import torch

    if torch.distributed.get_rank() == 1:
        raise ValueError("no such thing")
    torch.distributed.barrier()


def ulysses_and_ring() -> dict[str, float]:
    from pipes import PIPES

    import standins

    import torch
    from diffusers import ContextParallelConfig

    case = PIPES["FluxPipeline"]
    even = {"prompt_embeds": torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))}  # tokens for two ranks
    found = {}
    for name, config in (
        ("ulysses", ContextParallelConfig(ulysses_degree=2)),
        ("ring", ContextParallelConfig(ring_degree=2)),
    ):
        with standins.two_devices(), standins.native_ring():
            alone = case.run(case.make(), "distilled", 3, **even)
            pipe = case.make()
            pipe.transformer.enable_parallelism(config=config)
            together = case.run(pipe, "distilled", 3, **even)
        found[name] = float(torch.linalg.vector_norm(together - alone) / torch.linalg.vector_norm(alone))
    return found


def test_each_rank_answers(pair: Pair) -> None:
    assert pair(sums, value=3) == [{"rank": 0, "total": 7.0}, {"rank": 1, "total": 7.0}]


def test_the_stand_ins_change_nothing(pair: Pair) -> None:
    for found in pair(ulysses_and_ring):
        assert max(found.values()) < 1e-4, found


@pytest.mark.slow
def test_a_failure_tells_of_each_rank_and_the_next_pair_is_fresh(pair: Pair) -> None:
    with pytest.raises(Failed, match=r"(?s)rank 0.*did not return.*barrier.*rank 1.*_long_work"):
        pair(hangs, timeout=3)
    told = pair.fails(raises_on_one)
    assert "no such thing" in told
    assert "did not return" in told
    assert pair(sums, value=1)[0]["total"] == 3
