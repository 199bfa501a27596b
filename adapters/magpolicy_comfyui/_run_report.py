"""What a sampling did, for people: lines of text, values for the browser, a calibration if it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, define, evolve

from magpolicy import Calibration, Curve, RunError, Schedule
from magpolicy.adapter import ScheduleSpan
from magpolicy_comfyui._sources import SampledModel
from magpolicy_torch.adapter import Report


@define(eq=False)
class RunReport:
    """What one sampling did."""

    report: Report
    span: ScheduleSpan
    source: str
    """The preset that decided, by name."""
    notes: list[str] = Factory(list)
    measured: Calibration | None = None
    """What was measured, if that was asked."""
    problem: str = "this handle does not calibrate; attach with calibrate=True"
    """Why nothing was."""
    residuals_held: int = 0
    """Residuals that were held when this was said: none after a sampling."""
    model: SampledModel | None = None
    """What was found out of the model, where no preset was set."""

    @property
    def curve(self) -> Curve:
        """The curve that was measured.

        Raises:
            RunError: there is none.
        """
        if self.measured is None:
            raise RunError(f"curve: {self.problem}")
        return self.measured.curve

    def calibration(self, provenance: Mapping[str, Any]) -> Calibration:
        """What was measured, on a model that ``provenance`` says more about.

        Raises:
            RunError: nothing was.
        """
        if self.measured is None:
            raise RunError(f"calibration: {self.problem}")
        return evolve(self.measured, provenance={**self.measured.provenance, **provenance})

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
            "model": None if self.model is None else self.model.to_dict(),
            "decided": report.source,
            "advice": report.advice,
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
