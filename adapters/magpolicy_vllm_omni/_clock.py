"""Where a call stands in its run: as the pipeline's scheduler says, or by the timesteps, counted from the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magpolicy.adapter import ScheduleSpan
from magpolicy_torch.adapter import SchedulerClock, Times, TimestepClock


class PipelineClock:
    """Reads a pipeline's scheduler. Where a loop has one of its own, steps are counted by the change of the timestep, and how
    many there are to be is what the request asked for.

    Args:
        pipeline: whose scheduler it is.
        asked: number of steps that the request asks for.
    """

    def __init__(self, pipeline: Any, asked: int | None) -> None:
        self._scheduler, self._counted, self._asked = SchedulerClock(pipeline), TimestepClock(), asked
        self._reads = True
        self._began = False
        self.problem = ""
        """Why it cannot tell."""

    def tell(self, times: Callable[[], Times | None]) -> bool | None:
        """Look again. True: a new run began. ``None``: it cannot tell."""
        new = self._scheduler.tell(times)
        self._reads = new is not None
        return new if self._reads else self._count(times())

    def _count(self, times: Times | None) -> bool | None:
        if times is None or self._asked is None:
            what = "its model is given no timestep" if times is None else "the request asks for no number of steps"
            self.problem = f"its scheduler cannot be seen, and {what}"
            return None
        moved = self._counted.tell(times)
        if moved == "back":
            self._counted = TimestepClock(value=times)
        began, self._began = self._began, True
        return moved == "back" or not began

    @property
    def index(self) -> int:
        """The evaluation of now."""
        return self._scheduler.index if self._reads else self._counted.count

    @property
    def steps(self) -> int:
        """Evaluations of the run."""
        levels = self._scheduler.levels
        return len(levels.timesteps) if self._reads and levels is not None else int(self._asked or 0)

    def span(self, boundary: float | None) -> ScheduleSpan:
        """The run, for a session; ``boundary``: where the second of two experts takes over."""
        levels = self._scheduler.levels
        if self._reads and levels is not None:
            return levels.span(boundary)
        return ScheduleSpan(tuple(1 - step / self.steps for step in range(self.steps)), (), even=True)

    def noise(self) -> tuple[float, ...] | None:
        """The noise level of each evaluation, where the scheduler says it."""
        levels = self._scheduler.levels
        return levels.noise() if self._reads and levels is not None else None
