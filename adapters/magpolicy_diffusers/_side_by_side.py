"""The same call of a pipeline in full and at several speeds, from the same noise: what ``magpolicy try`` runs."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import StringIO
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from tqdm.auto import tqdm

import torch
from magpolicy import AdapterError, MagPolicyError, RunError, attach
from magpolicy.adapter import learned, should_compute_all
from magpolicy_torch.adapter import seeded

FULL = "full"
_WARMING = 2  # steps of the run that is not measured

Step = Callable[[int, int], None]
"""Told the step that was made, from 1, and how many there are."""


@frozen(eq=False)
class Outcome:
    """What one way of running gave."""

    name: str
    seconds: float
    """All calls together, from the prompt to the picture."""
    media: Sequence[NDArray[Any]]
    """Pictures ``(1, height, width, channels)`` and videos ``(frames, height, width, channels)`` in bytes, of all calls."""
    report: Any = None
    """What the last call did; ``None`` for the full run."""


def side_by_side(
    pipe: Any,
    calls: Sequence[tuple[Mapping[str, Any], int]],
    ways: Mapping[str, Mapping[str, Any]],
    *,
    teach: bool = False,
    on_run: Callable[[str], AbstractContextManager[Step]] = lambda name: nullcontext(lambda step, steps: None),
) -> list[Outcome]:
    """Run the calls in full and then in every way.

    Before that, the first call is made with two steps, so that what happens once in a process delays no run that is measured.

    Args:
        pipe: the pipeline; it is left as it was.
        calls: arguments of each call, without a generator, and the seed of its noise.
        ways: arguments of :func:`magpolicy.attach`, by name.
        teach: have the first full call measured as it computes, and keep what it teaches, as ``learn="first"`` does.
        on_run: entered for each run with its name, while it runs; gives what is told each step.

    Raises:
        AdapterError: the pipeline makes no pictures, or cannot be attached to.
        RunError: a call failed; the message says which.
    """
    for settings in ways.values():
        attach(pipe, **settings).detach()  # what cannot be had is said before anything is run
    if "num_inference_steps" in _takes(pipe):
        with on_run("warming up") as step:
            _run(pipe, [(dict(calls[0][0]) | {"num_inference_steps": _WARMING}, calls[0][1])], "warming up", step)
    with on_run(FULL) as step:
        media, seconds = _in_full(pipe, calls, step, teach)
    found = [Outcome(FULL, seconds, media)]
    for name, settings in ways.items():
        with attach(pipe, **settings) as handle, on_run(name) as step:
            media, seconds = _run(pipe, calls, name, step)
            found.append(Outcome(name, seconds, media, handle.report))
    return found


def _in_full(
    pipe: Any, calls: Sequence[tuple[Mapping[str, Any], int]], step: Step, teach: bool
) -> tuple[list[NDArray[Any]], float]:
    """The full run; where it can teach something new, its first call is attached to, which changes nothing in it."""
    if not teach:
        return _run(pipe, calls, FULL, step)
    with attach(pipe, learn="first") as handle:
        steps = dict(calls[0][0]).get("num_inference_steps", getattr(_takes(pipe).get("num_inference_steps"), "default", None))
        if should_compute_all(learned(handle.identity), whole=True, steps=steps if isinstance(steps, int) else None):
            first, seconds = _run(pipe, calls[:1], FULL, step)
            if all(entry.decision.computes for report in handle.reports for entry in report.trace):
                handle.detach()
                rest, more = _run(pipe, calls[1:], FULL, step)
                return first + rest, seconds + more
    return _run(pipe, calls, FULL, step)


def _run(pipe: Any, calls: Sequence[tuple[Mapping[str, Any], int]], name: str, step: Step) -> tuple[list[NDArray[Any]], float]:
    media: list[NDArray[Any]] = []
    seconds = 0.0
    for arguments, seed in calls:
        noise = {"generator": torch.Generator().manual_seed(seed)} if "generator" in _takes(pipe) else {}
        with _telling(pipe, step), seeded(seed), torch.inference_mode():  # some draw without their generator
            started = time.perf_counter()
            try:
                made = pipe(**dict(arguments) | noise)
            except MagPolicyError:
                raise
            except Exception as error:  # whatever a pipeline may say
                raise RunError(f"{name}: the pipeline failed: {type(error).__name__}: {error}") from error
            seconds += time.perf_counter() - started
        media += _media_of(made, pipe)
    return media, seconds


@contextmanager
def _telling(pipe: Any, step: Step) -> Iterator[None]:
    """Has the pipeline's own progress bar tell ``step``, and show nothing."""

    class Bar(tqdm):  # type: ignore[misc, unused-ignore]
        def display(self, *_: Any, **__: Any) -> None:
            step(int(self.n), int(self.total or 0))

    def bar(iterable: Any = None, total: int | None = None) -> Any:
        return Bar(iterable, total=total, file=StringIO(), mininterval=0, disable=False)

    pipe.progress_bar = bar
    try:
        yield
    finally:
        del pipe.progress_bar


def _takes(pipe: Any) -> Mapping[str, Any]:
    return inspect.signature(type(pipe).__call__).parameters


def _media_of(made: Any, pipe: Any) -> list[NDArray[Any]]:
    """The pictures and videos in what a pipeline returned.

    Raises:
        AdapterError: there are none.
    """
    first = next(iter(made.values())) if isinstance(made, Mapping) else made[0] if isinstance(made, tuple) else made
    found = [_as_frames(item) for item in first] if isinstance(first, (list, np.ndarray, torch.Tensor)) else []
    if not found or any(frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] not in (1, 3) for frames in found):
        raise AdapterError(f"{type(pipe).__name__} returned no pictures or videos, so there is nothing to compare")
    return found


def _as_frames(item: Any) -> NDArray[Any]:
    """One picture or video as bytes ``(frames, height, width, channels)``, or something else where it is neither."""
    if isinstance(item, torch.Tensor):
        values = item.float().cpu().numpy()
        return _as_bytes(np.moveaxis(values, -3, -1)) if values.ndim in (3, 4) else values
    several = isinstance(item, list)
    values = np.stack([np.asarray(frame) for frame in item]) if several else np.asarray(item)
    return _as_bytes(values[..., None] if values.ndim == 2 + several else values)


def _as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    """The frames as they are written to files; without transparency."""
    values = values[..., :3] if values.shape[-1] == 4 else values
    if values.dtype != np.uint8:
        values = (np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8)
    return values if values.ndim == 4 else values[None]
