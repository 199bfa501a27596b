"""Drawing schedules and curves (the ``plot`` extra)."""

from __future__ import annotations

import os
from typing import Any

from magpolicy._errors import require
from magpolicy._schedule import Schedule


def plot_schedule(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Per stream the accumulated modelled error over steps, above the strip of computed (dark) and skipped steps."""
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.18 * schedule.steps), 1.8 + 0.5 * len(schedule.streams)), layout="constrained")
    FigureCanvasAgg(figure)
    errors, strip = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.6 * len(schedule.streams)))
    steps = range(schedule.first_step, schedule.first_step + schedule.steps)
    for name in schedule.streams:
        errors.plot(steps, schedule.stream_errors(name), drawstyle="steps-mid", label=name)
    errors.set_ylabel("accumulated error")
    errors.set_title(f"{schedule.computed} of {schedule.steps} steps computed, {schedule.speedup:.2f}x", fontsize=10)
    if len(schedule.streams) > 1:
        errors.legend(fontsize=8)
    _draw_strip(strip, schedule)
    figure.savefig(path, dpi=120)


def _draw_strip(axes: Any, schedule: Schedule) -> None:
    left, right = schedule.first_step - 0.5, schedule.first_step + schedule.steps - 0.5
    axes.imshow(
        [[not computes for computes in mask] for mask in schedule.masks],
        aspect="auto", cmap="gray", vmin=-0.35, vmax=1.15, extent=(left, right, len(schedule.streams) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(schedule.streams)), schedule.streams)
    axes.set_xlabel("step (dark computes)")
