"""Where in its run a call stands: told by a scheduler of diffusers or like those, or by the timestep given to the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import define, frozen

from magpolicy import flow_sigmas
from magpolicy.adapter import ScheduleSpan
from torch import Tensor

_THOUSANDTHS = 160.0
"""A highest timestep above this is in thousandths of pure noise; sigmas of the usual schedules are lower."""
_HALF_TURN = 1.6
"""Above pi / 2: where all timesteps are lower, they are shares of pure noise or angles, and 0 is the clean end."""
Times = tuple[float, float]
"""The highest and the lowest timestep in a call: where tokens have their own, a clean one has the lowest, or the highest where
1 is clean."""


@frozen
class Levels:
    """What a scheduler is about to run."""

    timesteps: tuple[float, ...]
    """The timestep of each evaluation; second-order schedulers list some twice."""
    full: float
    """The timestep of pure noise."""
    sigmas: tuple[float, ...]
    """The scheduler's own noise levels, where it has them."""
    angles: bool = False
    """Whether timesteps are angles, whose tangent is the ratio of noise to signal (TrigFlow)."""

    @classmethod
    def of(cls, scheduler: Any) -> Levels | None:
        """Those of ``scheduler``; ``None`` if it lists none."""
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor) or timesteps.ndim != 1 or not timesteps.numel():
            return None
        sigmas = getattr(scheduler, "sigmas", None)
        config = getattr(scheduler, "config", None)
        angles = getattr(config, "prediction_type", None) == "trigflow"
        values = tuple(map(float, timesteps.tolist()))
        if len(values) > 1 and values[-1] == 0 and max(map(abs, values)) < _HALF_TURN:  # the end: it is listed, not evaluated
            values = values[:-1]
        full = math.pi / 2 if angles else _full(values, getattr(config, "num_train_timesteps", None) or 1000)
        listed = sigmas.tolist() if isinstance(sigmas, Tensor) and sigmas.ndim == 1 else ()
        return cls(values, full, tuple(map(float, listed)), angles)

    def noise(self) -> tuple[float, ...] | None:
        """Noise level of each evaluation, 1 to 0: the sigmas of flow matching, else the timestep over that of pure noise.

        Where a scheduler counts from the other end (Mochi's ``invert_sigmas``), so is the level. ``None`` if neither serves.
        """
        count = len(self.timesteps)
        levels: Sequence[float] = self.sigmas[:count]
        if self.angles:
            levels = [math.sin(t) / (math.sin(t) + math.cos(t)) for t in self.timesteps]
        elif len(levels) == count and min(self.timesteps) < 0:  # logarithms of sigma, a ratio of noise to signal
            levels = [level / (1 + level) for level in levels]
        elif len(levels) < count or max(levels) > 1.001:
            levels = [t / self.full for t in self.timesteps]
        if not all(0 <= level <= 1.001 for level in levels):
            return None
        if levels[0] < levels[-1]:
            levels = [1 - level for level in levels]
        return tuple(max(level, 1e-6) for level in levels)  # an evaluation at 0 is an evaluation, not the end

    def shares(self) -> tuple[float, ...] | None:
        """The assumed flow level of each evaluation, 1-i/n for the i-th of n distinct timesteps; ``None`` if none repeats."""
        distinct = list(dict.fromkeys(self.timesteps))
        if len(distinct) == len(self.timesteps):
            return None
        place = {timestep: index for index, timestep in enumerate(distinct)}
        return tuple(1 - place[timestep] / len(distinct) for timestep in self.timesteps)

    def span(self, boundary: float | None = None) -> ScheduleSpan:
        """The run as :func:`magpolicy.adapter.place` takes it.

        A curve with assumed levels is read by share of the run: which schedule it was calibrated on is not known.

        Args:
            boundary: where the second of two experts takes over, as a share of pure noise; ``None``: there is one.
        """
        shares, count = self.shares(), len(self.timesteps)
        switch = None if boundary is None else sum(t >= boundary * self.full for t in self.timesteps)
        levels = flow_sigmas(count) if shares is None else shares
        return ScheduleSpan(levels, self.noise() or (), even=shares is None, expert_step=switch)

    def find(self, timestep: float, near: int, reading: int | None = None) -> tuple[int, int] | None:
        """The evaluation at ``timestep`` as the model was given it, and how that is read; ``None`` if there is none.

        Models take timesteps as they are, as a share of pure noise, or counted from the other end. Nothing says which, so a
        run's first call decides: the reading that hits a timestep, of several the one that hits ``near``, else the first. Of
        equal timesteps, the first from ``near`` on.
        """
        share = timestep * self.full
        values = [timestep, share, self.full - timestep, self.full - share]
        rounded = [0.01 * abs(given) for given in (timestep, share, timestep, share)]  # bfloat16 is 0.4 percent off
        if self.angles:  # the share of noise that the angle stands for, or as it is
            values = [math.atan2(timestep, 1 - timestep), timestep]
            rounded = [0.01 * max(map(abs, self.timesteps))] * 2
        cut_off = 0.0011 * self.full  # whole-numbered timesteps are cut off: up to 1 of 1000
        found = []
        for number, value in enumerate(values):
            if reading not in (None, number):
                continue
            distances = [abs(t - value) for t in self.timesteps]
            index = min((*range(near, len(distances)), *reversed(range(near))), key=distances.__getitem__)
            distance = distances[index]
            if distance <= max(rounded[number], cut_off):
                found.append((max(distance, 0.001 * self.full), index != near, number, index))
        if not found:
            return None
        *_, number, index = min(found)
        return index, number


def _full(timesteps: Sequence[float], trained: float) -> float:
    """The timestep of pure noise: thousandths, shares, or of other units (logarithms, counts) the highest there is."""
    top = max(map(abs, timesteps))
    if min(timesteps) >= 0 and top > 0.1 * trained:
        return float(trained)
    return 1.0 if top <= 1.001 else top


class SchedulerClock:
    """Reads the step off a pipeline's scheduler."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._timesteps: Tensor | None = None  # held, so that another list cannot have its identity
        self.levels: Levels | None = None
        self.index = 0
        self.told = True
        """Whether something tells the step. Else calls stand where the first one did, and what they are given has to tell."""
        self._values: Times | tuple[float] | None = None  # of the call before, where they are of no unit that is known
        self._reading: int | None = None
        self._start: int | None = None

    def tell(self, timestep: Any) -> bool | None:
        """Look again. True: a new run began. None: the scheduler cannot tell. ``timestep()``: as the model is given it."""
        scheduler = getattr(self._pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None:
            return None
        new = timesteps is not self._timesteps
        if new:
            self.levels, self._timesteps, self._reading = Levels.of(scheduler), timesteps, None
            self._start = self._values = None
        if self.levels is None:
            return None
        self.told = True
        index = self._find(scheduler, timestep, 0 if new else self.index)
        back = index < self.index
        self.index = index
        return new or back

    def _find(self, scheduler: Any, timestep: Any, near: int) -> int:
        assert self.levels is not None
        last = len(self.levels.timesteps) - 1
        index, counted = getattr(scheduler, "step_index", None), getattr(scheduler, "counter", None)
        if isinstance(counted, int) and counted and self._start is not None:
            index = self._start + counted  # PNDM, which lists timesteps twice, has no step_index
        if index is None:
            # Before its first step a scheduler does not know where it is; and some pipelines step copies of it.
            begin = getattr(scheduler, "begin_index", None)
            if begin is not None and near == 0:
                near = int(begin)
            now = getattr(self._pipe, "_current_timestep", None)
            values = (float(now.max()),) if isinstance(now, Tensor) else (float(now),) if now is not None else timestep() or ()
            # What the first call was read as may have been chance (1 is pure noise as a share, and the end from the other end).
            readings = (self._reading,) if self._reading is None else (self._reading, None)
            places = (self.levels.find(value, min(near, last), reading) for reading in readings for value in values)
            counts = self._values is not None and self._reading is None  # what no list held at first is in another unit
            found = None if counts else next((place for place in places if place is not None), None)
            index, self._reading = (self._by_change(values, near), self._reading) if found is None else found
            if not counted:
                self._start = int(index)
        return min(int(index), last)

    def _by_change(self, values: Any, near: int) -> int:
        """The step of a call whose timestep is none of the scheduler's: counted, by its changes, from the first."""
        first = self._values is None and self._start is None
        made = getattr(self._pipe, "_num_timesteps", None)
        if first and near == 0 and isinstance(made, int) and self.levels is not None:
            near = max(len(self.levels.timesteps) - made, 0) if made > 0 else 0  # image to image: so many of the list are made
        if not values or self._reading is not None:  # it was read before: this call is none of a step, such as one at time 0
            self.told = bool(values)
            return near
        before, self._values = self._values, values
        return near + (before not in (None, values))


@define
class TimestepClock:
    """Counts steps by the change of the timestep; a run is over when it turns back."""

    count: int = 0
    value: Times | None = None
    rising: bool | None = None

    def place(self, steps: int, *, rising: bool) -> int:
        """Position of the timestep of now in a run of ``steps`` steps, taken for even ones.

        Timesteps are shares of pure noise or thousandths of it; of other units (angles, sigmas) nothing can be told, and of
        one within a step of either end it is not known which end it is: such a run is at its beginning.
        """
        highest = 0.0 if self.value is None else self.value[0]
        share = highest if highest <= 1.001 else highest / 1000 if _THOUSANDTHS < highest <= 1001 else 0.0
        before = int((share if rising else 1 - share) * steps + 1e-3)  # spacings that lead begin a little lower
        return before if 0 < before < steps - 1 and share * steps > 1 else 0

    def tell(self, timestep: Times | None) -> str:
        """``"same"`` step, ``"next"``, ``"back"``: the beginning of another run, or ``"untold"``."""
        if timestep is None:
            return "untold"
        before, self.value = self.value, timestep
        if before is None or timestep == before:
            return "same"
        rising = timestep > before  # the highest decides; the lowest where that one stays
        if self.rising not in (None, rising):
            return "back"
        self.rising = rising
        self.count += 1
        return "next"
