"""Two workers of the engine that share each request, over gloo. Each scenario is a process of its own, and each worker."""

from __future__ import annotations

import unittest.mock
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from engine_process.ranks import on_two
from vllm_omni.diffusion.data import DiffusionParallelConfig

import torch

from . import engine

FORKED = True


def alone(kind: str, settings: dict[str, Any], steps: int = 12) -> dict[str, Any]:
    """One worker that has all of it."""
    return _run(engine.worker(kind), kind, settings, steps)


def two(kind: str, parallel: dict[str, Any], settings: list[dict[str, Any]], steps: int = 12) -> list[dict[str, Any]]:
    """Two that share a request, each with its own settings."""
    config = engine.config(kind, num_gpus=2, parallel_config=DiffusionParallelConfig(**parallel))  # which finds a port

    def work(rank: int) -> dict[str, Any]:
        return _run(engine.DiffusionWorker(rank, rank, config), kind, settings[rank], steps)

    return on_two(work)


def _run(worker: Any, kind: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
    with _counted() as whole:
        (plain,) = engine.run(worker.model_runner, [engine.request(kind, steps, guided=True)])
    with engine.cached(kind, runner=worker.model_runner, **settings) as runner:
        handle = runner.cache_backend.handle
        (latents,) = engine.run(runner, [engine.request(kind, steps, guided=True)])
        (report,), run = handle.reports, handle.runs[0]
        streams = list(dict.fromkeys(entry.stream for entry in run.session.trace))
        with _counted() as skipping:
            again = engine.run(runner, [engine.request(kind, steps, guided=True)])[0]
    (after,) = engine.run(worker.model_runner, [engine.request(kind, steps, guided=True)])
    return {
        "mask": "".join("C" if computed else "." for computed in report.schedule.mask), "streams": streams,
        "problems": list(report.problems), "held": handle.residuals_held, "sum": float(latents.double().sum()),
        "again": torch.equal(latents, again), "after": torch.equal(plain, after),
        "difference": float((plain - latents).abs().max() / plain.abs().max()),
        "collectives": [whole.count, skipping.count],
        "calibration": _table(handle.calibration) if settings.get("calibrate") else None,
    }  # fmt: skip


class _Counted:
    """Counts collectives, by the functions of PyTorch that the engine calls."""

    names = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_to_all_single", "broadcast")

    def __init__(self) -> None:
        self.count = 0

    def wrapped(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return original(*args, **kwargs)

        return call


@contextmanager
def _counted() -> Iterator[_Counted]:
    found = _Counted()
    with ExitStack() as patches:
        for name in found.names:
            original = getattr(torch.distributed, name)
            patches.enter_context(unittest.mock.patch.object(torch.distributed, name, found.wrapped(original)))
        yield found


def _table(calibration: Any) -> dict[str, Any]:
    return {name: moments.gram.tolist() for name, moments in calibration.streams.items()}
