"""How long an evaluation takes on its device."""

from __future__ import annotations

import time
from typing import Any

import torch
from magpolicy_torch.device import _accelerator


class Timer:
    """Begins when it is made. Reading it waits for the device, stopping it does not.

    Args:
        device: where the evaluation is made; by default the current device.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._first: Any = _accelerator.timer(device)
        self._last: Any = None
        self._start = time.perf_counter()
        self._end = self._start

    def stop(self) -> Timer:
        """The evaluation is through (or, on an accelerator, all of it is queued)."""
        self._end = time.perf_counter()
        if self._first is not None:
            self._last = _accelerator.timer(self._device)
        return self

    @property
    def seconds(self) -> float:
        """Time between the two."""
        if self._last is None:
            return self._end - self._start
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1000

    @property
    def done(self) -> bool:
        """Whether the time can be read without waiting."""
        return self._last is None or bool(self._last.query())
