"""The device beside the CPU, whichever torch drives: CUDA, XPU, NPU, ...

From torch 2.7 on one set of streams and events serves them all. Before it, CUDA alone is served.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COMMON = hasattr(torch, "accelerator") and hasattr(torch.Stream, "__enter__")

OutOfMemory = torch.cuda.OutOfMemoryError
"""Of any device: from torch 2.5 on it is ``torch.OutOfMemoryError``."""


@functools.cache  # asked for at every evaluation
def kind() -> str | None:
    """Type of the accelerator that torch was built for or extended by, whether or not one is there; ``None`` if there is none.

    It has memory, streams and generators of its own. Apple's MPS does not count: it computes in main memory, on one stream.
    """
    if not _COMMON:
        return "cuda"
    found = torch.accelerator.current_accelerator()
    return None if found is None or found.type == "mps" else found.type


def default() -> str:
    """The type of device to run on if none is asked for: the accelerator if one is there, or the CPU."""
    found = kind()
    return found if found is not None and getattr(getattr(torch, found, None), "is_available", bool)() else "cpu"


def awake() -> bool:
    """Whether an accelerator is in use. Asking does not wake it."""
    module = getattr(torch, kind() or "", None)
    return bool(getattr(module, "is_initialized", bool)())


def devices() -> list[torch.device]:
    """The accelerators, if they are in use."""
    found = kind()
    return [torch.device(found, i) for i in range(getattr(torch, found).device_count())] if found and awake() else []


def forked(devices: Iterable[torch.device]) -> contextlib.AbstractContextManager[None]:
    """What is drawn inside, on the CPU or those of ``devices`` that are accelerators, is drawn again outside."""
    found = kind() or "cuda"
    forking: contextlib.AbstractContextManager[None] = torch.random.fork_rng(
        [device for device in devices if device.type == found], device_type=found
    )
    return forking


def timer(device: torch.device | None = None) -> Any:
    """An event that is recorded now on the stream of ``device``, by default the current one; two of them tell the time in
    between. ``None`` if that is no accelerator in use, or one without such events.
    """
    found = kind()
    if found is None or not awake() or (device is not None and device.type != found):
        return None
    with contextlib.suppress(RuntimeError):
        stream = current_stream(device or torch.device(found))
        event: Any = torch.Event(stream.device, enable_timing=True) if _COMMON else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event
    return None


def remote(device: torch.device) -> bool:
    """Whether this is an accelerator, and one with streams and events."""
    return device.type == kind() and _queues(device)


@functools.cache
def _queues(device: torch.device) -> bool:
    try:
        current_stream(device).record_event()
    except RuntimeError:
        return False
    return True


def current_stream(device: torch.device) -> Any:
    """The stream that work for ``device`` goes to."""
    return torch.accelerator.current_stream(device) if _COMMON else torch.cuda.current_stream(device)


def beside(device: torch.device) -> Any:
    """A stream for what goes on beside the current one of ``device``, or that one itself if memory cannot pass between them."""
    return _beside(device) or current_stream(device)


@functools.cache
def _beside(device: torch.device) -> Any:
    """One a device for all runs: torch keeps freed memory by stream."""
    with contextlib.suppress(RuntimeError):
        stream: Any = torch.Stream(device=device) if _COMMON else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if lend(torch.empty(0, device=device), stream):
            return stream
    return None


def using(stream: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, work goes to ``stream``."""
    if not _COMMON:
        return torch.cuda.stream(stream)
    # A stream notes in itself what to go back to, so threads must not enter the same object.
    return torch.Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)


def lend(tensor: Tensor, stream: Any) -> bool:
    """Once ``tensor`` is freed, keep its memory until ``stream`` is through with what it has to do by then.

    Returns:
        whether the device's memory knows streams at all.
    """
    try:
        tensor.record_stream(stream)
    except NotImplementedError:  # what torch raises where no kernel does it, as on a CPU; nothing else tells before
        return False
    return True
