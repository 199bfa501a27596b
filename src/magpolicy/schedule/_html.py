"""A schedule as a picture for notebooks: one row of boxes a stream, filled where the step computes, and its name if there are
several."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy.schedule._schedule import Schedule

BOX, GAP, WIDEST, LETTER = 16, 3, 900, 8
"""Pixels: a box with its gap, at most; a gap; all boxes of a row; and a letter of a stream's name, about."""
_COMPUTED, _SKIPPED = "#2a9d8f", "#8884"


def picture(schedule: Schedule) -> str:
    """An inline SVG; a box's tooltip says the step, its noise level, what decided, and the error that a skip is to have."""
    side = max(2.0, min(BOX, WIDEST / schedule.steps))
    rows = "".join(_row(schedule, index, side) for index in range(len(schedule.streams)))
    longest = max(map(len, schedule.streams)) if len(schedule.streams) > 1 else 0
    width, height = side * schedule.steps + LETTER * (longest + bool(longest)), (BOX + GAP) * len(schedule.streams)
    said = escape(f"{schedule.computed} of {schedule.steps} steps compute", quote=True)
    fits = f'viewBox="0 0 {width:g} {height}" style="max-width: 100%; height: auto"'
    return f'<svg role="img" aria-label="{said}" width="{width:g}" height="{height}" {fits}>{rows}</svg>'


def _row(schedule: Schedule, index: int, side: float) -> str:
    boxes = []
    for place, computes in enumerate(schedule.masks[index]):
        x, y = place * side, index * (BOX + GAP)
        fill = _COMPUTED if computes else _SKIPPED
        title = f"<title>{escape(_said(schedule, index, place))}</title>"
        boxes.append(
            f'<rect x="{x:g}" y="{y}" width="{max(1.0, side - GAP):g}" height="{BOX}" rx="2" fill="{fill}">{title}</rect>'
        )
    if len(schedule.streams) > 1:
        x, y = side * schedule.steps + LETTER, index * (BOX + GAP) + BOX - 4
        boxes.append(f'<text x="{x:g}" y="{y}" font-size="12" fill="currentColor">{escape(schedule.streams[index])}</text>')
    return "".join(boxes)


def _said(schedule: Schedule, index: int, place: int) -> str:
    name, decision = schedule.streams[index], schedule.decisions[index][place]
    where = f"step {schedule.first_step + place}" + (f", {name}" if len(schedule.streams) > 1 else "")
    level = "" if schedule.sigmas is None else f", noise level {schedule.sigmas[place]:.3g}"
    error = f", error {schedule.modelled[index][place]:.2g}" if decision.skip else ""
    return f"{where}{level}: {decision.reason}{error}"


def as_html(schedule: Schedule) -> str:
    """The picture under a line of figures."""
    said = f"{schedule.steps} steps, {schedule.computed} computed, {schedule.speedup:.2f}x"
    return f"<div>{escape(said)}<br>{picture(schedule)}</div>"
