"""Weights or activations spread over two ranks, by FSDP2, tensor parallelism, DTensor or DDP: the same runs as in one process,
and a skipped block exchanges nothing."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from harness import Pair

STEPS = 8
LEVELS = [1 - step / STEPS for step in range(STEPS)]
RULE: dict[str, Any] = {
    "ratios": [1.0, 0.99, 0.98, 1.01, 0.97, 0.99, 0.98, 0.96], "threshold": 0.05, "max_skips": 2, "retention": 0.2
}  # fmt: skip
CLOSE = 1e-5
BESIDE_BLOCKS = {"FSDP2: root, resharded": 1, "DTensor": 1}
"""Collectives of a call that stand outside the blocks: the root gathers its own weights, an input is handed out."""
KINDS = [
    *(f"FSDP2: {where}, {when}" for where in ("blocks", "root") for when in ("resharded", "kept")),
    *(f"tensor parallel: {name}Transformer2DModel" for name in ("Flux", "Flux2", "QwenImage", "QwenImage21")),
    *(f"DTensor: {split}" for split in ("replicated", "tokens", "channels")),
]


def one_run(module: Any, call: Any, odd: float = 0.0, **settings: Any) -> dict[str, Any]:
    """Two runs of ``STEPS`` steps, and of the second one: the results, what decided, what was measured, the collectives of each
    step. At the first skip of all it is found out how to skip."""
    from rank_models import Collectives, said

    import magpolicy
    import torch

    with magpolicy.attach(module, **settings) as handle, torch.no_grad():
        for _ in range(2):
            results, counts, counter = [], [], Collectives()
            with handle.run(steps=STEPS, sigmas=LEVELS):
                for step, level in enumerate(LEVELS):
                    handle.go_to(step)
                    with counter:
                        result = call(module, level, odd)
                    counts.append(len(counter.seen))
                    counter.seen.clear()
                    results.append(result.full_tensor() if hasattr(result, "full_tensor") else result.clone())
        return said(handle) | {
            "results": results, "counts": counts, "mask": list(handle.report.schedule.mask), "problems": handle.report.problems,
            "calibration": handle.calibration if settings.get("calibrate") else None, "identity": handle.identity,
            "ranks": 1 if (group := handle.request.group()) is None else group.size,
        }  # fmt: skip


def beside_one_process(kind: str) -> dict[str, Any]:
    from sharded_models import shared

    way = shared(kind)
    alone, ours = way.alone(), way.spread()
    found: dict[str, Any] = {}
    known = None
    for name, settings in {
        "calibration": {"calibrate": True},
        "rule": RULE,
        "plan": {"speedup": 2.0},
        "prior": {"computed": 5, "learn": False},
        "safeguard": {"speedup": 2.0, "safeguard": 1.0, "odd": 1.0},
    }.items():
        more = {"calibration": known} if "speedup" in settings else {}
        one = one_run(alone, way.call, group=False, **settings, **more)
        many = one_run(ours, way.call, **settings, **more)
        known = one["calibration"] or known
        pairs = list(zip(many["results"], one["results"], strict=True))
        far = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        found[name] = {"far": far, "one": one, "many": many}
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_run_what_one_process_runs_and_a_skip_exchanges_nothing(pair: Pair, kind: str) -> None:
    import numpy as np

    beside = next((count for start, count in BESIDE_BLOCKS.items() if kind.startswith(start)), 0)
    first, second = pair(beside_one_process, kind=kind)
    for name, run in first.items():
        one, many, other = run["one"], run["many"], second[name]["many"]
        assert many["mask"] == other["mask"] == one["mask"]
        assert many["decisions"] == other["decisions"] == one["decisions"], many["problems"]
        assert many["identity"] == one["identity"]
        assert many["ranks"] == (1 if kind.startswith("DTensor") else 2)
        assert not many["problems"]
        assert run["far"] < CLOSE
        assert many["counts"] == other["counts"]
        skips = {count for count, computes in zip(many["counts"], many["mask"], strict=True) if not computes}
        assert skips == (set() if name == "calibration" else {beside})
    one, many = (first["calibration"][which]["calibration"].streams for which in ("one", "many"))
    for stream, moments in one.items():
        np.testing.assert_allclose(many[stream].gram, moments.gram, rtol=1e-5, atol=1e-6 * np.nanmax(moments.gram))
    assert first["safeguard"]["many"]["replans"]
    assert first["safeguard"]["many"]["replans"] == second["safeguard"]["many"]["replans"]


def kept_by_one_process(kind: str) -> str:
    """What a run of a sharded model goes by, where the model was calibrated by a process of its own."""
    from attrs import evolve
    from rank_models import rank
    from sharded_models import shared

    import magpolicy
    from torch import distributed

    way = shared(kind)
    with magpolicy.attach(way.alone(), calibrate=True, group=False) as handle:
        with handle.run(steps=STEPS, sigmas=LEVELS):
            for step, level in enumerate(LEVELS):
                handle.go_to(step)
                way.call(handle.module, level, 0.0)
        if rank() == 0:
            magpolicy.keep(evolve(handle.calibration, name="by-one-process"))
    distributed.barrier()
    return one_run(way.spread(), way.call, speedup=2.0)["source"]


@pytest.mark.parametrize("kind", ["FSDP2: root, resharded", "tensor parallel: FluxTransformer2DModel"])
def test_a_calibration_of_the_whole_model_is_found_for_the_sharded_one(pair: Pair, kind: str) -> None:
    first, second = pair(kept_by_one_process, kind=kind)
    assert first == second
    assert "by-one-process" in first


def with_settings(kind: str, speedups: tuple[float, float]) -> dict[str, Any]:
    """Runs under ``handle.settings``: each rank with its own of two speeds; then one without."""
    from rank_models import rank, said
    from sharded_models import shared

    import magpolicy
    import torch

    way = shared(kind)
    found: dict[str, Any] = {}
    with magpolicy.attach(way.spread(), speedup=2.0, learn=False) as handle, torch.no_grad():

        def sample() -> dict[str, Any]:
            with handle.run(steps=STEPS, sigmas=LEVELS):
                for step, level in enumerate(LEVELS):
                    handle.go_to(step)
                    way.call(handle.module, level, 0.0)
            return said(handle) | {"computed": handle.report.computed}

        try:
            with handle.settings(speedup=speedups[rank()]):
                found["inside"] = sample()
        except magpolicy.RunError as error:
            found["error"] = str(error)
        found["after"] = sample()
    return found


@pytest.mark.parametrize("kind", ["FSDP2: root, resharded", "FSDP2: blocks, kept", "tensor parallel: FluxTransformer2DModel"])
def test_settings_of_a_request_hold_on_all_ranks_or_on_none(pair: Pair, kind: str) -> None:
    first, second = pair(with_settings, kind=kind, speedups=(4.0, 4.0))
    assert first == second
    assert (first["inside"]["computed"], first["after"]["computed"]) == (2, 4)
    first, second = pair(with_settings, kind=kind, speedups=(4.0, 2.0))
    assert "the plan: rank 0 has 8 steps" in first["error"]
    assert first == second
    assert first["after"]["computed"] == 4


def in_a_pipeline(how: str) -> dict[str, Any]:
    from pipes import PIPES

    from rank_models import said

    import magpolicy
    import torch
    from magpolicy import AdapterError
    from torch import nn

    class Through(nn.parallel.DistributedDataParallel):
        """Has what its module has, as a pipeline asks for it."""

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("module"), name)

    case = PIPES["FluxPipeline"]
    runs = []
    for wraps in (False, True):
        pipe = case.make()
        if wraps:
            model: Any = pipe.transformer.requires_grad_(True)
            model = torch.compile(model, backend="eager") if "compiled" in how else model
            pipe.transformer = Through(model)
        found: dict[str, Any] = {}
        for name, settings in {"calibration": {"calibrate": True}, "rule": RULE, "plan": {"speedup": 2.0}}.items():
            more = {"calibration": found["calibration"]} if name == "plan" else {}
            with magpolicy.attach(pipe, **settings, **more) as handle:
                result = case.run(pipe, "true cfg", STEPS)
                found[name] = (
                    handle.calibration if name == "calibration" else (result, said(handle), handle.report.schedule.mask)
                )
        runs.append(found)
    try:
        with magpolicy.attach(pipe.transformer, speedup=2.0, learn=False) as handle:
            named = handle.identity.model
    except AdapterError as error:
        named = str(error)
    return {"one": runs[0], "many": runs[1], "named": named}


@pytest.mark.parametrize("how", ["DDP", "compiled, DDP"])
def test_a_pipeline_finds_its_transformer_in_ddp(pair: Pair, how: str) -> None:
    import numpy as np

    for found in pair(in_a_pipeline, how=how):
        one, many = found["one"], found["many"]
        for stream, moments in one["calibration"].streams.items():
            np.testing.assert_array_equal(many["calibration"].streams[stream].gram, moments.gram)
        for name in ("rule", "plan"):
            assert many[name][1:] == one[name][1:]
            assert not all(many[name][2])
            assert (many[name][0] - one[name][0]).abs().max() == 0
        assert found["named"] == "FluxTransformer2DModel"
