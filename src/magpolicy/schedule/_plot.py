"""Drawing schedules and curves (the ``plot`` extra)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from magpolicy._errors import require

if TYPE_CHECKING:
    from magpolicy.schedule._schedule import Schedule


def plot_schedule(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Per stream the modelled error over steps, above the strip of computed (dark) and skipped steps."""
    figure = _figure(schedule, 1.8 + 0.5 * len(schedule.streams))
    errors, strip = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.6 * len(schedule.streams)))
    _draw_errors(errors, schedule)
    _draw_strip(strip, schedule)
    figure.savefig(path, dpi=120)


def plot_plan(schedule: Schedule, others: Sequence[Schedule], path: str | os.PathLike[str]) -> None:
    """A plan over its strip, and beside it the expected error against speed of ``others`` with the plan's own point."""
    figure = _figure(schedule, 2.2 + 0.5 * len(schedule.streams), beside=3.2)
    left, right = figure.subfigures(1, 2, width_ratios=(max(5.0, 0.18 * schedule.steps), 3.2))
    errors, strip = left.subplots(2, 1, sharex=True, height_ratios=(3, 0.6 * len(schedule.streams)))
    _draw_errors(errors, schedule)
    _draw_strip(strip, schedule)
    _draw_trade(right.subplots(), schedule, others)
    figure.savefig(path, dpi=120)


def plot_comparison(schedules: Mapping[str, tuple[Schedule, Sequence[float]]], path: str | os.PathLike[str]) -> None:
    """Named schedules with the error expected at each step: the curves in one diagram, above the strips."""
    first = next(iter(schedules.values()))[0]
    figure = _figure(first, 2.0 + 0.6 * len(schedules))
    errors, *strips = figure.subplots(1 + len(schedules), 1, sharex=True, height_ratios=(3, *[0.6] * len(schedules)))
    for (name, (schedule, curve)), strip in zip(schedules.items(), strips, strict=True):
        steps = range(schedule.first_step, schedule.first_step + schedule.steps)
        known = [value if math.isfinite(value) else math.nan for value in curve]
        errors.plot(steps, known, drawstyle="steps-mid", label=f"{name}: {schedule.computed} computed, {schedule.speedup:.2f}x")
        left, right = schedule.first_step - 0.5, schedule.first_step + schedule.steps - 0.5
        _draw_rows(strip, [schedule.mask], (name,), (left, right))
    errors.set_ylabel("expected relative error")
    errors.legend(fontsize=8)
    strips[-1].set_xlabel("step (dark computes)")
    figure.savefig(path, dpi=120)


def _figure(schedule: Schedule, height: float, beside: float = 0.0) -> Any:
    require("matplotlib", "plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 0.18 * schedule.steps) + beside, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_errors(axes: Any, schedule: Schedule) -> None:
    steps = range(schedule.first_step, schedule.first_step + schedule.steps)
    for name in schedule.streams:
        axes.plot(steps, schedule.stream_errors(name), drawstyle="steps-mid", label=name)
    axes.set_ylabel("expected relative error" if schedule.planned else "accumulated error")
    axes.set_title(f"{schedule.computed} of {schedule.steps} steps computed, {schedule.speedup:.2f}x", fontsize=10)
    if len(schedule.streams) > 1:
        axes.legend(fontsize=8)


def _draw_trade(axes: Any, schedule: Schedule, others: Sequence[Schedule]) -> None:
    shown = [other for other in others if other.computed < other.steps]
    axes.plot([other.speedup for other in shown], [other.rms_error for other in shown], marker=".", linewidth=1)
    axes.plot([schedule.speedup], [schedule.rms_error], marker="o", markersize=9, color="C3")
    axes.set_xlabel("speedup")
    axes.set_ylabel("expected error, rms")
    axes.set_yscale("log" if all(other.rms_error > 0 for other in shown) and shown else "linear")
    axes.set_title("what speed costs", fontsize=10)


def _draw_strip(axes: Any, schedule: Schedule) -> None:
    ends = schedule.first_step - 0.5, schedule.first_step + schedule.steps - 0.5
    _draw_rows(axes, schedule.masks, schedule.streams, ends)
    axes.set_xlabel("step (dark computes)")


def _draw_rows(axes: Any, masks: Sequence[Sequence[bool]], names: Sequence[str], ends: tuple[float, float]) -> None:
    axes.imshow(
        [[not computes for computes in mask] for mask in masks],
        aspect="auto", cmap="gray", vmin=-0.35, vmax=1.15, extent=(*ends, len(masks) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_yticks(range(len(masks)), names)
