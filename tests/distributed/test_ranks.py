"""Ranks that run a model together decide alike: they measure together, agree when a run begins, and say nothing on skips."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair


def found_groups() -> dict[str, Any]:
    from rank_models import Net, flux_over_two, sharded, tensor_parallel
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard

    import torch
    from magpolicy import ArgumentError
    from magpolicy_torch.adapter import SharedBy
    from torch import distributed, nn

    def size(module: Any, group: Any = None) -> int:
        found = SharedBy([module], group)()
        return 1 if found is None else found.size

    cpu = distributed.init_device_mesh
    names = ("replicate", "shard")
    flat, hybrid, grid = cpu("cpu", (2,)), cpu("cpu", (2, 1), mesh_dim_names=names), cpu("cpu", (1, 2), mesh_dim_names=names)
    first = distributed.new_group([0])

    def fsdp1(**options: Any) -> nn.Module:
        return FullyShardedDataParallel(Net().requires_grad_(True), device_id=torch.device("cpu"), **options)

    with flux_over_two() as pipe:
        found = {"context parallel": size(pipe.transformer), "but false": size(pipe.transformer, False)}
    wrong = {}
    for name, group in {"number": 3, "another's": first}.items():
        try:
            size(Net(), group)
        except ArgumentError as error:
            wrong[name] = str(error)
    return found | {
        "plain": size(Net()),
        "replicas": size(nn.parallel.DistributedDataParallel(Net().requires_grad_(True))),
        "sharded": size(sharded()),
        "tensor parallel": size(tensor_parallel()),
        "replicas of two shards": size(fully_shard(Net(), mesh=grid)),
        "two replicas of one shard": size(fully_shard(Net(), mesh=hybrid)),
        "FSDP1": size(fsdp1()),
        "FSDP1, not sharded": size(fsdp1(sharding_strategy=ShardingStrategy.NO_SHARD)),
        "a group given": size(Net(), distributed.group.WORLD),
        "a mesh given": size(Net(), flat),
        "a mesh of two dimensions given": size(Net(), grid),
        "wrong": wrong,
    }


def test_the_model_shows_who_shares_it(pair: Pair) -> None:
    for rank, found in enumerate(pair(found_groups)):
        wrong = found.pop("wrong")
        assert wrong.pop("number").startswith("group=3 is not known; give a torch ProcessGroup or DeviceMesh, False for")
        assert [text.startswith("group") for text in wrong.values()] == [True] * rank  # rank 1 is not in that of rank 0
        alone = {"but false", "plain", "replicas", "two replicas of one shard", "FSDP1, not sharded"}
        assert found == {name: 1 if name in alone else 2 for name in found}


def calibrated(kind: str) -> dict[str, Any]:
    from rank_models import FLUX, Net, flux_over_two, loop, paint, rank, sharded, tensor_parallel

    import magpolicy
    import torch

    def measured(module: Any, run: Any, **settings: Any) -> Any:
        with magpolicy.attach(module, calibrate=True, **settings) as handle:
            run(handle)
            return handle.calibration

    if kind == "context parallel":
        alone = measured(FLUX.make(), lambda handle: paint(handle.target, "true cfg"))
        with flux_over_two() as pipe:
            ours = measured(pipe, lambda handle: paint(handle.target, "true cfg"))
    else:
        many = {"sharded": sharded, "tensor parallel": tensor_parallel, "sharded, an input each": sharded}[kind]
        seed = rank() if kind.endswith("each") else 0
        ours = measured(many(), lambda handle: loop(handle, seed))
        alone = measured(Net(), lambda handle: loop(handle, 0))
        if kind.endswith("each"):
            other = measured(Net(), lambda handle: loop(handle, 1))
            moments = magpolicy.StreamMoments(
                gram=(alone.streams["single"].gram + other.streams["single"].gram) / 2,
                ratios=alone.streams["single"].ratios,
                spread=alone.streams["single"].spread,
                cosine=alone.streams["single"].cosine,
            )
            alone = magpolicy.Calibration(sigmas=alone.sigmas, streams={"single": moments})
    tables = {name: (ours.streams[name].gram, alone.streams[name].gram) for name in alone.streams}
    tables |= {str(pair): (ours.cross[pair], alone.cross[pair]) for pair in alone.cross}
    off = {name: float(abs(torch.tensor(a / b - 1)).nan_to_num(0).max()) for name, (a, b) in tables.items()}
    return {"off": off, "gram": ours.streams[next(iter(alone.streams))].gram.tolist(), "ranks": ours.provenance.get("ranks")}


@pytest.mark.parametrize("kind", ["context parallel", "sharded", "tensor parallel", "sharded, an input each"])
def test_a_calibration_is_that_of_all_ranks(pair: Pair, kind: str) -> None:
    first, second = pair(calibrated, kind=kind)
    assert str(first["gram"]) == str(second["gram"])  # to the bit, so plans are
    assert first["ranks"] == 2
    assert first["off"]
    assert max(first["off"].values()) < 1e-6, first["off"]


def reads_on_one() -> float:
    from rank_models import loop, rank, sharded

    import magpolicy

    with magpolicy.attach(sharded(), calibrate=True) as handle:
        loop(handle)
        return float(handle.calibration.steps) if rank() == 0 else 0.0


def test_one_rank_alone_may_read_it(pair: Pair) -> None:
    assert pair(reads_on_one) == [12.0, 0.0]


def learned(known: bool) -> dict[str, Any]:
    from rank_models import Net, loop, rank, said

    import magpolicy
    from torch import distributed

    net = Net()
    if known and rank() == 0:
        with magpolicy.attach(net, speedup=2.0, group=False) as handle:  # by itself, and in a folder of its own
            loop(handle, 5)
    with magpolicy.attach(net, speedup=2.0, group=distributed.group.WORLD) as handle:
        told = []
        for seed in range(3):
            loop(handle, seed + 10 * rank())
            told.append(said(handle))
    files = sorted(path.name for path in magpolicy.library().glob("**/*.json"))
    return {"told": told, "files": files}


@pytest.mark.parametrize("known", [False, True])
def test_ranks_learn_together_and_the_first_one_keeps_it(pair: Pair, known: bool) -> None:
    first, second = pair(learned, known=known, apart=True)
    assert first["told"] == second["told"]
    assert [run["source"].startswith("a plan from the general prior") for run in first["told"]] == [not known, False, False]
    assert [len(first["files"]), len(second["files"])] == [1, 0]


def guarded(kind: str) -> dict[str, Any]:
    """A run with a safeguard, of a model that after the calibration goes another way from the middle on; beside one process."""
    from rank_models import FLUX, Net, flux_over_two, loop, paint, rank, said, sharded

    import magpolicy
    from torch import distributed

    if kind == "context parallel":
        alone_pipe = FLUX.make()
        with magpolicy.attach(alone_pipe, calibrate=True) as handle:
            paint(alone_pipe)
            known = handle.calibration
        settings = dict(calibration=known, speedup=2.0, safeguard=1.0)
        with magpolicy.attach(alone_pipe, **settings) as handle:
            paint(alone_pipe, seed=7)
            alone = said(handle)
        with flux_over_two() as pipe, magpolicy.attach(pipe, **settings) as handle:
            paint(pipe, seed=7)
            return {"alone": alone, "ours": said(handle)}
    with magpolicy.attach(Net(), calibrate=True) as handle:
        loop(handle)
        known = handle.calibration
    settings = dict(calibration=known, speedup=2.0, safeguard=1.5)
    net, apart = (sharded(), Net()) if kind == "sharded" else (Net(), Net())
    for model in (net, apart):
        if rank() == 1:  # the inputs of one rank alone go off the plan
            model.blocks[0].register_forward_hook(lambda module, args, out: out + out.roll(1, -1) * (args[1] < 0.5))
    with magpolicy.attach(apart, **settings, group=False) as handle:
        loop(handle, rank())
        alone = said(handle)
    with magpolicy.attach(net, **settings, group=None if kind == "sharded" else distributed.group.WORLD) as handle:
        loop(handle, rank())
        return {"alone": alone, "ours": said(handle)}


@pytest.mark.parametrize("kind", ["context parallel", "sharded", "replicas"])
def test_a_safeguard_measures_on_all_ranks_and_each_plans_again_alike(pair: Pair, kind: str) -> None:
    first, second = pair(guarded, kind=kind)
    assert first["ours"] == second["ours"]
    assert first["ours"]["replans"]
    if kind == "context parallel":
        alone, ours = first["alone"], first["ours"]
        assert [r[:2] + r[3:] for r in ours["replans"]] == [r[:2] + r[3:] for r in alone["replans"]]
        assert [r[2] for r in ours["replans"]] == pytest.approx([r[2] for r in alone["replans"]], rel=1e-3)
        assert ours["decisions"] == alone["decisions"]
    else:  # what the measurement of each by itself would have done
        assert first["alone"]["decisions"] != second["alone"]["decisions"]


def doubting() -> dict[str, Any]:
    from rank_models import Net, loop, rank, said

    import magpolicy
    from torch import distributed

    net = Net()
    if rank() == 1:  # its residuals turn back at each step
        net.blocks[2].register_forward_hook(lambda module, args, out: out * (1 + 0.5 * (-1) ** int(args[1] * 12)))
    found = {}
    for name, group in (("alone", False), ("ours", distributed.group.WORLD)):
        with magpolicy.attach(net, speedup=2.0, learn=False, group=group) as handle:
            loop(handle, rank())
            found[name] = said(handle)
    return found


def test_whether_forecasts_are_trusted_is_decided_together(pair: Pair) -> None:
    first, second = pair(doubting)
    assert first["alone"]["doubted"] != second["alone"]["doubted"]
    assert first["ours"] == second["ours"]


def not_finite(kind: str, **settings: Any) -> Any:
    from rank_models import STEPS, Net, loop, rank, said, sharded

    import magpolicy
    import torch
    from torch import distributed

    net = sharded() if kind == "sharded" else Net()

    def spoil(module: Any, args: Any, out: Any) -> Any:
        return out * torch.tensor([1.0, float("nan")])[int(rank() == 1 and 0.4 < args[1] < 0.6)]

    net.blocks[1].register_forward_hook(spoil)
    mask = [step % 3 == 0 for step in range(STEPS)]
    settings = settings or {"schedule": magpolicy.Schedule.from_mask(mask)}
    with magpolicy.attach(net, **settings, group=distributed.group.WORLD) as handle:
        loop(handle)
        return said(handle) | {"computed": handle.report.computed}


@pytest.mark.parametrize("kind", ["sharded", "replicas"])
def test_a_residual_that_is_not_finite_on_one_rank_is_kept_on_none(pair: Pair, kind: str) -> None:
    first, second = pair(not_finite, kind=kind)
    assert str(first) == str(second)
    assert any("finite" in decision for _, _, decision in first["decisions"])


def counted(kind: str) -> dict[str, Any]:
    from rank_models import STEPS, Net, loop, sharded

    import magpolicy
    from torch import distributed

    mask = [step % 3 == 0 for step in range(STEPS)]
    net = sharded() if kind == "sharded" else Net()
    found: dict[str, Any] = {"mask": mask}
    for name, settings in {"full": {"calibrate": True}, "ours": {"schedule": magpolicy.Schedule.from_mask(mask)}}.items():
        with magpolicy.attach(net, **settings, group=distributed.group.WORLD) as handle:
            loop(handle)  # what is found out at the first computed step and the first skip is found out
            found[name] = []
            loop(handle, counts=found[name])
    return found


@pytest.mark.parametrize("kind", ["sharded", "replicas"])
def test_ranks_issue_the_same_collectives_and_a_skip_none_of_ours(pair: Pair, kind: str) -> None:
    first, second = pair(counted, kind=kind)
    assert first == second
    for computes, full, ours in zip(first["mask"], first["full"], first["ours"], strict=True):
        assert bool(full) == (kind == "sharded")  # the weights of each block
        assert len(ours) == (len(full) + 1 if computes else 0)  # on the CPU alone, ranks say whether residuals are finite


def disagree(kind: str, settings: list[dict[str, Any]], steps: list[int]) -> dict[str, Any]:
    from rank_models import Net, loop, rank, said, sharded

    import magpolicy
    from torch import distributed

    net = sharded() if kind == "sharded" else Net()
    found: dict[str, Any] = {}
    mine = settings[rank() % len(settings)]
    with magpolicy.attach(net, **mine, group=distributed.group.WORLD) as handle:
        try:
            loop(handle, steps=steps[rank() % len(steps)])
        except magpolicy.RunError as error:
            found["error"] = str(error)
    with magpolicy.attach(net, speedup=2.0, learn=False) as handle:
        loop(handle)
        found["next"] = said(handle)
    return found


PLANNED = {"speedup": 2.0, "learn": False}


@pytest.mark.parametrize(
    ("settings", "steps", "told"),
    [
        ([PLANNED, {**PLANNED, "speedup": 3.0}], [12], "the plan: rank 0 has 12 steps ██"),
        ([PLANNED], [12, 14], "steps: rank 0 has 12 steps; rank 1 has 14 steps"),
        ([PLANNED, {"learn": False, "speedup": 2.0, "safeguard": True}], [12], "safeguard=2.0"),
        ([PLANNED, {"speedup": 2.0, "learn": True}], [12], "rank 0 begins a run, rank 1 asks what earlier runs taught"),
        ([PLANNED, {"calibrate": True}], [12], "rank 1 has calibrate=True"),
        (
            [{"ratios": [1.0, 0.99] * 6, "threshold": t, "max_skips": 2, "retention": 0.2} for t in (0.05, 0.06)],
            [12],
            "threshold=0.06",
        ),
    ],
    ids=["speedup", "steps", "safeguard", "learn", "calibrate", "threshold"],
)
def test_ranks_that_would_not_decide_alike_raise_the_same_error(
    pair: Pair, settings: list[dict[str, Any]], steps: list[int], told: str
) -> None:
    first, second = pair(disagree, kind="sharded", settings=settings, steps=steps)
    assert told in first["error"]
    assert "attach with the same settings on every rank, or attach with group=False" in first["error"]
    assert first == second  # and the next run is as if there had been none


def raising(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 raises in the middle of a run of its own; then both make one more."""
    from rank_models import Net, loop, rank, said

    import magpolicy
    from torch import distributed

    net = Net()

    def fault(level: Any, x: Any) -> Any:
        if rank() == 1 and level < 0.5:
            raise MemoryError("no room")
        return x

    found: dict[str, Any] = {}
    with magpolicy.attach(net, **settings, group=distributed.group.WORLD) as handle:
        if kind == "second run":
            loop(handle, rank())
        net.spoil = fault
        try:
            loop(handle, rank())
            found["end"] = "its end"
        except MemoryError as error:
            found["end"] = str(error)
        net.spoil = lambda level, x: x
        if "calibrate" in settings:
            try:
                _ = handle.calibration
            except magpolicy.MagPolicyError as error:
                found["calibration"] = str(error)
        loop(handle, rank())
        found["next"] = said(handle)
        if "calibrate" in settings:
            found["next"] |= {"gram": str(handle.calibration.streams["single"].gram)}
    return found


@pytest.mark.parametrize("kind", ["first run", "second run"])
@pytest.mark.parametrize(
    "settings", [{"speedup": 2.0}, {"calibrate": True}, PLANNED | {"safeguard": True}], ids=["learn", "calibrate", "safeguard"]
)
def test_an_exception_on_one_rank_leaves_the_others_alone_and_the_next_run_is_clean(
    pair: Pair, kind: str, settings: dict[str, Any]
) -> None:
    first, second = pair(raising, kind=kind, settings=settings)
    assert (first["end"], second["end"]) == ("its end", "no room")
    assert first["next"] == second["next"]
    if "calibrate" in settings:
        assert "ranks did not measure the same steps" in first["calibration"]
        assert "was not finished" in second["calibration"]
