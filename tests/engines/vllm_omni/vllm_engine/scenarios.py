"""What is done in the engine; each returns plain data, which the tests look at."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import magpolicy
import torch

from . import engine
from .backend_life import backend_life as backend_life  # the tests ask for it here
from .model_runs import model as model
from .model_runs import refused_models as refused_models
from .model_runs import zoo as zoo


def _mask(handle: Any, which: int = -1) -> str:
    return "".join("C" if computed else "." for computed in handle.reports[which].schedule.mask)


def plain_and_attached(kind: str, settings: dict[str, Any], steps: int = 12, guided: bool = False) -> dict[str, Any]:
    """One request in full, and the same with the backend."""
    made = engine.request(kind, steps, guided=guided)
    (plain,) = engine.run(engine.worker(kind).model_runner, [made])
    with engine.cached(kind, **settings) as runner:
        (attached,) = engine.run(runner, [engine.request(kind, steps, guided=guided)])
        handle = runner.cache_backend.handle
        streams = list(dict.fromkeys(entry.stream for entry in handle.runs[0].session.trace))
        plan = handle.runs[0].session.schedule
        found = {
            "mask": _mask(handle), "streams": streams, "held": handle.residuals_held, "stack": handle.runs[0].stack,
            "planned": None if plan is None else "".join("C" if computed else "." for computed in plan.mask),
        }  # fmt: skip
    (after,) = engine.run(engine.worker(kind).model_runner, [engine.request(kind, steps, guided=guided)])
    return found | {
        "same": torch.equal(plain, attached),
        "difference": float((plain - attached).abs().max() / plain.abs().max()),
        "same_after": torch.equal(plain, after),
    }


def masks(kind: str, settings: dict[str, Any], requests: list[dict[str, Any]]) -> list[str]:
    """What each of several requests computed, one after the other."""
    found = []
    with engine.cached(kind, **settings) as runner:
        for each in requests:
            engine.run(runner, [engine.request(kind, **each)])
            found.append(_mask(runner.cache_backend.handle))
    return found


def two_experts(settings: dict[str, Any], boundary: float | None) -> dict[str, Any]:
    """A request to a model of two experts: which of them each step is of, and what the same request computes."""

    def ask(runner: Any) -> torch.Tensor:
        (latents,) = engine.run(runner, [engine.request("wan_two_experts", guided=True, boundary_ratio=boundary)])
        return latents

    plain = engine.worker("wan_two_experts").model_runner
    called: list[int] = []
    hooks = [
        expert.register_forward_pre_hook(lambda *_, number=number: called.append(number))
        for number, expert in enumerate((plain.pipeline.transformer, plain.pipeline.transformer_2))
    ]
    latents = ask(plain)
    for hook in hooks:
        hook.remove()
    with engine.cached("wan_two_experts", **settings) as runner:
        same = torch.equal(latents, ask(runner))
        handle = runner.cache_backend.handle
        (report,), plan = handle.reports, handle.runs[0].session.schedule
        experts = "".join(map(str, called[::2]))  # two branches of guidance a step
        return {
            "mask": _mask(handle), "planned": "".join("C" if computed else "." for computed in plan.mask),
            "experts": experts, "problems": report.problems, "held": handle.residuals_held, "same": same
        }  # fmt: skip


def by_hand(kind: str) -> list[str]:
    """Runs within ``handle.settings``, and outside."""
    found = []
    with engine.cached(kind, speedup=2.0, learn=False) as runner:
        handle = runner.cache_backend.handle
        for asked in (None, 3.0, None):
            with nullcontext() if asked is None else handle.settings(speedup=asked):
                engine.run(runner, [engine.request(kind)])
            found.append(_mask(handle))
    return found


def compiled(kind: str) -> dict[str, Any]:
    """The engine's own compilation of each block, its graphs run by PyTorch as they are; and runs of what it made."""
    from torch._dynamo.utils import counters
    from vllm_omni.diffusion.compile import regionally_compile

    runner = engine.worker(kind).model_runner
    (plain,) = engine.run(runner, [engine.request(kind)])
    blocks = [block for name, block in runner.pipeline.transformer.named_modules() if name.rpartition(".")[2].isdigit()]
    own = [dict(vars(block)) for block in blocks]
    counters.clear()
    regionally_compile(runner.pipeline.transformer, dynamic=True, backend="eager")
    try:
        (whole,) = engine.run(runner, [engine.request(kind)])
        graphs = counters["stats"]["unique_graphs"]
        with engine.cached(kind, speedup=2.0, learn=False) as cached:
            masks = []
            for steps in (12, 20, 12):
                (latents,) = engine.run(cached, [engine.request(kind, steps)])
                masks.append(_mask(cached.cache_backend.handle))
        return {
            "same": torch.allclose(plain, whole, atol=1e-5), "graphs": graphs, "masks": masks,
            "more": counters["stats"]["unique_graphs"] - graphs, "breaks": len(counters["graph_break"]),
            "difference": float((plain - latents).abs().max() / plain.abs().max()),
        }  # fmt: skip
    finally:
        for block, before in zip(blocks, own, strict=True):
            for name in set(vars(block)) - set(before):
                del block.__dict__[name]
            vars(block).update(before)


def without(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A request that asks for none of it, by itself and in a batch with one that asks for nothing."""
    plain = engine.run(engine.worker(kind).model_runner, [engine.request(kind)])
    with engine.cached(kind, **settings) as runner:
        alone = engine.run(runner, [engine.request(kind, magpolicy=False)])
        engine.run(runner, [engine.request(kind, magpolicy=False), engine.request(kind, seed=5)])
        runs = len(runner.cache_backend.handle.runs)
    return {"same": torch.equal(plain[0], alone[0]), "runs": runs}


def batch(kind: str, settings: dict[str, Any], requests: list[dict[str, Any]]) -> str:
    """What requests in one batch computed."""
    with engine.cached(kind, **settings) as runner:
        engine.run(runner, [engine.request(kind, **each) for each in requests])
        return _mask(runner.cache_backend.handle)


def keys() -> dict[str, Any]:
    """Whether the engine may put requests of different speeds into one batch: its own key."""
    from vllm_omni.diffusion.sched.request_scheduler import RequestScheduler

    scheduler = RequestScheduler()
    one, other = (scheduler._build_sampling_params_key(engine.request("flux", magpolicy={"speedup": s})) for s in (1.5, 3.0))
    longer = scheduler._build_sampling_params_key(engine.request("flux", 20))
    return {"speeds": one == other, "steps": one == longer}


def interrupted(kind: str) -> dict[str, Any]:
    """A run that the model breaks off, and the one after it."""
    settings = {"speedup": 2.0, "learn": False}
    with engine.cached(kind, **settings) as runner:
        handle = runner.cache_backend.handle
        (expected,) = engine.run(runner, [engine.request(kind)])
        mask, count = _mask(handle), 0

        def breaks(module: Any, args: Any) -> None:
            nonlocal count
            count += 1
            if count == 5:
                raise RuntimeError("out of memory")

        hook = runner.pipeline.transformer.register_forward_pre_hook(breaks)
        try:
            engine.run(runner, [engine.request(kind)])
            error = ""
        except RuntimeError as raised:
            error = str(raised)
        hook.remove()
        held = handle.residuals_held
        (again,) = engine.run(runner, [engine.request(kind)])
        return {
            "error": error, "held": held, "same": torch.equal(expected, again), "masks": [mask, _mask(handle)],
        }  # fmt: skip


def dummy_run() -> dict[str, Any]:
    """The engine's warm-up is no run of the user's."""
    with engine.cached("flux", speedup=2.0) as runner:
        engine.run(runner, [engine.request("flux", 2, dummy=True)])
        runs = len(runner.cache_backend.handle.runs)
    return {"runs": runs}


def detached(kind: str) -> dict[str, Any]:
    """What attaching and detaching leave behind on the pipeline and its model."""
    runner = engine.worker(kind).model_runner
    engine.run(runner, [engine.request(kind)])  # what a run leaves by itself

    def own() -> list[str]:
        return sorted([*vars(runner.pipeline), *vars(runner.pipeline.transformer)])

    before = own()
    with engine.cached(kind, speedup=2.0) as attached:
        engine.run(attached, [engine.request(kind)])
        during = own()
    gc.collect()
    return {"same": own() == before, "patched": during != before}


def refused(settings: dict[str, Any]) -> None:
    """The start of the engine with a cache config; raises."""
    import magpolicy_vllm_omni

    magpolicy_vllm_omni.register()
    engine.fresh("flux", cache_backend="magpolicy", cache_config=settings)


def started(settings: dict[str, Any]) -> dict[str, Any]:
    """A worker that the engine starts with the backend in its config, through its own plugin loader."""
    from vllm_omni import plugins

    found = plugins.load_omni_plugins_by_group(plugins.OMNI_DEFAULT_PLUGINS_GROUP)
    if "magpolicy" not in found:  # this checkout was installed before the entry point was there
        import magpolicy_vllm_omni

        found["magpolicy"] = magpolicy_vllm_omni.register
    for name, start in found.items():
        if name == "magpolicy":
            start()
            start()  # engines call it again
    made = engine.fresh("flux", cache_backend="magpolicy", cache_config=settings)
    output = made.execute_model(engine.request("flux"), made.od_config)
    backend = made.model_runner.cache_backend
    answer = {"backend": type(backend).__name__, "mask": _mask(backend.handle), "error": output.error}
    made.shutdown()
    engine._workers.clear()
    return answer


def version(found: str) -> dict[str, Any]:
    """Another version of the engine: what its own backends do, and what ours does."""
    import vllm_omni

    import magpolicy_vllm_omni

    magpolicy_vllm_omni.register()
    before, vllm_omni.__version__ = vllm_omni.__version__, found
    try:
        own = engine.runner_module.get_cache_backend("mag_cache", {})
        answer = {"own": type(own).__name__, "none": engine.runner_module.get_cache_backend("none", {})}
        try:
            engine.runner_module.get_cache_backend("magpolicy", {})
        except magpolicy.AdapterError as error:
            answer["error"] = str(error)
        return answer
    finally:
        vllm_omni.__version__ = before


def calibrated(kind: str, steps: int = 12) -> dict[str, Any]:
    """A calibration that is measured in the engine, and a run planned from it."""
    with engine.cached(kind, calibrate=True) as runner:
        engine.run(runner, [engine.request(kind, steps, guided=True)])
        measured = runner.cache_backend.handle.calibration
    path = str(engine.folder(kind) / "measured.json")
    measured.save(path)
    with engine.cached(kind, calibration=path, speedup=2.0) as runner:
        engine.run(runner, [engine.request(kind, steps, guided=True)])
        handle = runner.cache_backend.handle
        return {"streams": list(measured.streams), "model": measured.provenance["model"], "mask": _mask(handle)}


def own_cache(kind: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """The engine's own mag_cache: what it computed at each step, seen at the last block."""
    with engine.cached(kind, "mag_cache", **settings) as runner:
        transformer, found = runner.pipeline.transformer, []
        last = transformer.single_transformer_blocks[-1]
        norm, ran = last.norm, [0]
        counting = norm.register_forward_hook(lambda *_: ran.__setitem__(0, ran[0] + 1))

        def step(*_: Any) -> None:
            found.append(ran[0])
            ran[0] = 0

        steps_seen = transformer.register_forward_hook(step)
        try:
            (latents,) = engine.run(runner, [engine.request(kind, steps)])
        finally:
            counting.remove()
            steps_seen.remove()
    (plain,) = engine.run(runner, [engine.request(kind, steps)])
    return {
        "mask": "".join("C" if count else "." for count in found),
        "difference": float((plain - latents).abs().max() / plain.abs().max()),
    }
