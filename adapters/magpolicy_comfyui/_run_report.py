"""What a sampling did, for people: lines of text, values for the browser, a calibration if it was measured."""

from __future__ import annotations

from typing import Any

from attrs import Factory, define

from magpolicy import Calibration, Schedule
from magpolicy_comfyui._noise_levels import ScheduleSpan
from magpolicy_torch.adapter import Report


@define(eq=False)
class RunReport:
    """What one sampling did."""

    report: Report
    span: ScheduleSpan
    source: str
    """The preset that decided, by name."""
    notes: list[str] = Factory(list)
    calibration: Calibration | None = None
    """What was measured, if that was asked."""
    problem: str = ""
    """Of a calibration: why nothing was."""

    @property
    def schedule(self) -> Schedule:
        """What ran."""
        assert self.report.schedule is not None
        return self.report.schedule

    @property
    def text(self) -> str:
        """A few lines for the log and the node."""
        lines = [f"{self.source}: {self.report}"]
        if self.span.partial:
            first = self.span.first
            last = first + len(self.span.levels)
            lines.append(f"evaluations {first + 1} to {last} of a schedule of {self.span.steps}")
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON values for the browser."""
        report = self.report
        return {
            "source": self.source,
            "strip": report.strip,
            "computed": report.computed,
            "skipped": report.skipped,
            "reasons": report.reasons,
            "estimated_speedup": report.estimated_speedup,
            "measured_speedup": report.measured_speedup,
            "seconds": report.seconds,
            "scope": report.scope,
            "notes": list(self.notes),
            "text": self.text,
            "schedule": self.schedule.to_dict(),
        }
