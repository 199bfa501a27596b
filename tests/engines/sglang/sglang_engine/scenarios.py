"""What is done in the engine; each returns plain data, which the tests look at. Each is a process of its own (``FORKED``)."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager, suppress
from typing import Any

from attrs import evolve
from engine_process.ranks import on_two

import magpolicy
import torch
from magpolicy_sglang._handle import ATTACHED

from . import engine, plugins
from .plugins import logged, started

FORKED = True


def _mask(report: Any) -> str:
    return "".join("C" if computed else "." for computed in report.schedule.mask)


def _share(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@contextmanager
def _blocks_counted(server: Any):
    """Counts calls of blocks."""
    lists = [module for model in server.models for module in model.children() if isinstance(module, torch.nn.ModuleList)]
    ran: list[int] = []
    hooks = [block.register_forward_hook(lambda *_: ran.append(1)) for blocks in lists for block in blocks]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def plain_and_asked(kind: str, asks: Any, steps: int = 12, guided: bool = False, server: Any = None) -> dict[str, Any]:
    """One request in full, and the same by magpolicy; ``server``: settings of the server."""
    started(server)
    here = engine.Server(kind)
    with _blocks_counted(here) as ran:
        plain = here.run(here.request(steps, guided=guided, asks=False))
        whole = len(ran)
        ran.clear()
        out = here.run(here.request(steps, guided=guided, asks=asks))
    handle = ATTACHED[here.stage]
    report = handle.report
    plan = handle.runs[0].session.schedule
    with torch.no_grad():
        after = here.run(here.request(steps, guided=guided, asks=False))
    return {
        "mask": _mask(report), "planned": None if plan is None else _mask_of(plan), "model": report.model,
        "streams": list(dict.fromkeys(entry.stream for entry in report.trace)), "forecasts": report.forecasts,
        "sigmas": [entry.sigma for entry in report.trace if entry.stream == "cond"], "problems": list(report.problems),
        "same": torch.equal(plain, out), "same_after": torch.equal(plain, after), "difference": _share(plain, out),
        "blocks": [len(ran), whole], "held": handle.residuals_held,
        "hooks": _hooks_on(here),
    }  # fmt: skip


def _mask_of(schedule: Any) -> str:
    return "".join("C" if computed else "." for computed in schedule.mask)


def masks(kind: str, requests: list[dict[str, Any]], server: Any = None) -> list[str | None]:
    """What each of several requests computed, one after the other; ``None``: it was no run."""
    started(server)
    here, found, last = engine.Server(kind), [], None
    for each in requests:
        here.run(here.request(**each))
        handle = ATTACHED.get(here.stage)
        run = handle.runs[-1] if handle is not None and handle.runs else None
        found.append(None if run is last else _mask(run.report))
        last = run
    return found


def interrupted(kind: str) -> dict[str, Any]:
    """A request that the model breaks off, the next one, and the same in a server that has seen no other."""
    started()
    here, asks = engine.Server(kind), {"speedup": 2.0}
    count = 0

    def breaks(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise RuntimeError("out of memory")

    hooks = [model.register_forward_pre_hook(breaks) for model in here.models]
    try:
        here.run(here.request(asks=asks))
        error = ""
    except RuntimeError as raised:
        error = str(raised)
    for hook in hooks:
        hook.remove()
    handle = ATTACHED[here.stage]
    held, running = handle.residuals_held, handle.running
    again = here.run(here.request(asks=asks))
    fresh = engine.Server(kind)
    expected = fresh.run(fresh.request(asks=asks))
    return {
        "error": error, "held": held, "running": running, "same": torch.equal(again, expected),
        "masks": [_mask(handle.report), _mask(ATTACHED[fresh.stage].report)],
        "hooks": _hooks_on(here),
    }  # fmt: skip


def _hooks_on(server: Any) -> int:
    return sum(len(module._forward_pre_hooks) for model in server.models for module in model.modules())


def sizes(kind: str) -> dict[str, Any]:
    """Requests of other sizes in turn, each the same as in a server that has seen no other."""
    started()
    here, asks, same = engine.Server(kind), {"speedup": 2.0}, []
    for size in (8, 12, 8):
        out = here.run(here.request(asks=asks, size=size))
        fresh = engine.Server(kind)
        same.append(torch.equal(out, fresh.run(fresh.request(asks=asks, size=size))))
    return {"same": same, "problems": list(ATTACHED[here.stage].report.problems)}


def part_of_a_schedule(kind: str, begin: int) -> dict[str, Any]:
    """A request that begins midway on the schedule, as from an image."""
    started()
    here = engine.Server(kind)
    asked = here.request(12, asks={"speedup": 2.0})
    asked.scheduler.set_begin_index(begin)
    asked.timesteps = asked.timesteps[begin:]
    here.run(asked)
    report = ATTACHED[here.stage].report
    return {"steps": [entry.step for entry in report.trace], "sigmas": [entry.sigma for entry in report.trace]}


def by_the_rule(kind: str, settings: dict[str, Any], steps: int) -> dict[str, str]:
    """The rule with published ratios, and what ``simulate`` says."""
    started(settings)
    here = engine.Server(kind)
    here.run(here.request(steps))
    report = ATTACHED[here.stage].report
    given = dict(settings)
    preset = given.pop("preset")
    simulated = magpolicy.simulate(preset, steps=steps, semantics=None, **given)
    return {"mask": _mask(report), "simulated": _mask_of(simulated)}


def calibrated(kind: str, guided: bool, *, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """A calibration measured here, and a server that goes by its file; ``about``: other provenance, as of another host."""
    started()
    here = engine.Server(kind)
    handle = magpolicy.attach(here.stage, calibrate=True)
    here.run(here.request(12, guided=guided))
    measured = handle.calibration
    if about is not None:
        measured = evolve(measured, provenance=about)
    handle.detach()
    path = os.path.join(os.environ["MAGPOLICY_HOME"], "measured.json")
    measured.save(path)
    magpolicy.attach(here.stage, calibration=path, computed=6)  # as a server does with its settings
    here.run(here.request(12, guided=guided))
    report = ATTACHED[here.stage].report
    return {
        "streams": list(measured.streams),
        "mask": _mask(report),
        "source": report.source,
        "problems": list(report.problems),
    }


def attached_by_hand(kind: str) -> dict[str, Any]:
    """``magpolicy.attach`` on the stage: the handle of others, replaced and detached."""
    started()
    here = engine.Server(kind)
    plain = here.run(here.request())
    first = magpolicy.attach(here.stage, speedup=2.0)
    second = magpolicy.attach(here.stage, speedup=3.0)
    here.run(here.request())
    found = {"mask": _mask(second.report), "attached": [handle is second for handle in magpolicy.attached(here.stage)]}
    here.run(here.request(asks={"speedup": 1.5}))
    found["asked"] = _mask(second.report)
    magpolicy.detach(here.stage)
    found["same"] = torch.equal(plain, here.run(here.request()))
    found["left"] = len(magpolicy.attached(here.stage))
    found["first"] = first.running
    return found


def attach_fails(kind: str, settings: dict[str, Any]) -> None:
    """What is said of settings that are not for this host."""
    started()
    magpolicy.attach(engine.Server(kind).stage, **settings)


def others(kind: str, request: dict[str, Any], server: Any = None) -> dict[str, Any]:
    """A request that cannot skip, and what the log says of it."""
    started(server)
    here = engine.Server(kind)
    with logged() as lines:
        for _ in range(2):
            here.run(here.request(**request))
    return {"lines": lines, "runs": ATTACHED[here.stage].runs != ()}


def own_loop(stage: str) -> dict[str, Any]:
    """A stage of the engine with a loop of its own is asked to skip; its loop is left out, which needs models not made here."""
    from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage

    started({"speedup": 2.0})
    module, _, name = stage.rpartition(".")
    kind = getattr(importlib.import_module(f"sglang.multimodal_gen.runtime.{module}"), name)
    here = engine.Server("wan")
    left_out = {"forward": lambda self, batch, server_args: batch, "__init__": lambda self: None}
    made = type(name, (kind,), left_out | {name: getattr(PipelineStage, name) for name in ("verify_input", "verify_output")})()
    for attribute, value in vars(here.stage).items():
        setattr(made, attribute, value)
    with logged() as lines:
        made(here.request(), here.args)
    return {"lines": lines}


def start(server: Any, version: str | None = None) -> dict[str, Any]:
    """The start of a server with these settings, in a version of the engine."""
    plugins.pretend(version)
    started(server)
    with logged() as lines:
        engine.Server("wan")
    return {"patched": plugins.patched(), "lines": lines}


def unpatched_after(server: Any, version: str | None = None) -> dict[str, Any]:
    """Whether anything was patched by a start that failed."""
    plugins.pretend(version)
    with suppress(SystemExit):
        started(server)
    return {"patched": plugins.patched()}


def signatures() -> dict[str, bool]:
    """By the engine's own key, which requests may be in one batch."""
    from sglang.multimodal_gen.runtime.managers.scheduler import Scheduler

    here = engine.Server("wan")
    key = Scheduler._diffusers_kwargs_signature_value
    scheduler = Scheduler.__new__(Scheduler)

    def keyed(asks: Any) -> Any:
        asked = here.request(asks=asks)
        asked.extra.update(asked.sampling_params.build_request_extra())
        return key(scheduler, asked)

    return {
        "same": keyed({"speedup": 2.0}) == keyed({"speedup": 2.0}),
        "other": keyed({"speedup": 2.0}) == keyed({"speedup": 3.0}),
    }


def together(kind: str, parallel: dict[str, Any], asks: list[Any], steps: int = 12) -> list[dict[str, Any]]:
    """A request that two workers share, in full and by magpolicy: what each of them finds."""
    started()

    def work(rank: int) -> dict[str, Any]:
        here = engine.Server(kind, num_gpus=2, **parallel)
        plain = here.run(here.request(steps, guided=True, asks=False))
        with _blocks_counted(here) as ran:
            out = here.run(here.request(steps, guided=True, asks=asks[rank]))
        handle = ATTACHED[here.stage]
        report = handle.report
        return {
            "mask": _mask(report), "streams": sorted({entry.stream for entry in report.trace}), "blocks": len(ran),
            "difference": _share(plain, out), "sum": float(out.double().sum()), "problems": list(report.problems),
            "held": handle.residuals_held,
        }  # fmt: skip

    return on_two(work)
