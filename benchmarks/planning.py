"""What planning costs: ``python benchmarks/planning.py`` (CPU time of one thread, peak memory, longest gap; a minute).

Against a reference, in one run: plans of which every start is improved, as they are up to ``MANY_STEPS`` steps. Two streams,
guidance not known, residuals as the general prior expects them: of constant norms, and with those of published tables.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np

import magpolicy
from magpolicy.calibration._prior import prior_calibration
from magpolicy.planning import _planner

COUNTS, SPEEDS = (28, 50, 100, 150, 200), (1.5, 2.0, 3.0)
TABLES = ("flux.1-dev", "wan2.1-t2v-1.3b", "qwen-image", "hunyuanvideo-t2v-720p")


def two_streams(steps: int) -> magpolicy.Calibration:
    return prior_calibration(None, levels=[1 - i / steps for i in range(steps)], streams=("cond", "uncond"))


def timed(source: Any, steps: int, speedup: float) -> tuple[float, magpolicy.Schedule]:
    began = time.process_time()
    schedule = magpolicy.plan(source, steps=steps, speedup=speedup)
    return time.process_time() - began, schedule


def peak(source: Any, steps: int, speedup: float) -> float:
    """MB."""
    tracemalloc.start()
    try:
        magpolicy.plan(source, steps=steps, speedup=speedup)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def longest_gap(schedule: magpolicy.Schedule) -> int:
    computed = [i for i, computes in enumerate(schedule.mask) if computes]
    return int(np.diff([*computed, schedule.steps]).max())


def costs(counts: Sequence[int]) -> None:
    for steps in counts:
        seconds, schedule = timed(two_streams(steps), steps, 2.0)
        print(f"{steps:4} steps, 2x: {seconds:6.2f} s, {peak(two_streams(steps), steps, 2.0):5.0f} MB, {schedule.strip}")


def one_start(steps: int) -> None:
    """The best start improved alone, over all of them: expected distance and time."""
    usual, ratios, seconds, gaps = _planner.MANY_STEPS, [], [0.0, 0.0], []
    for source in TABLES:
        for speedup in SPEEDS:
            distances = []
            for which, limit in enumerate((steps, 0)):
                _planner.MANY_STEPS = limit
                took, schedule = timed(source, steps, speedup)
                seconds[which] += took
                distances.append(magpolicy.expected_distance(source, schedule, steps=steps))
                gaps.append(longest_gap(schedule))
            ratios.append(distances[1] / distances[0])
    _planner.MANY_STEPS = usual
    print(
        f"{steps:4} steps, one start over all: distance {np.mean(ratios):.3f} in the mean, {max(ratios):.3f} at most, "
        f"time {seconds[1] / seconds[0]:.2f}; longest gap {max(gaps)}"
    )


def main() -> None:
    costs(COUNTS)
    for steps in (50, 100):
        one_start(steps)


if __name__ == "__main__":
    main()
