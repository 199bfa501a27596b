"""What a sampling did, for people: lines of text, values for the browser, a curve if it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import Factory, define

from magpolicy import ArgumentError, Calibration, Schedule
from magpolicy_torch.host._report import Report
from magpolicy_torch.residuals._moments import versions

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan
    from magpolicy_comfyui._runs import HostRun


@define(eq=False)
class RunReport:
    """The outcome of one sampling."""

    report: Report
    place: ScheduleSpan
    source: str
    """The preset that decided, by name."""
    notes: list[str] = Factory(list)
    calibration: Calibration | None = None
    """What was measured, if that was asked."""
    problem: str = ""
    """Of a calibration: why nothing was."""

    @classmethod
    def of(cls, sampling: HostRun) -> RunReport | None:
        """The outcome of ``sampling``; ``None`` if nothing was evaluated under a policy."""
        session, place = sampling.session, sampling.place
        if session is None or place is None or not session.trace:
            return None
        report = Report.of(session, sampling.record, sampling._scope)
        source = sampling._source
        known = session.config.preset  # of several by a name, the one that served
        name = getattr(known or source, "name", "") or (source if isinstance(source, str) else type(source).__name__)
        outcome = cls(report, place, "calibration" if sampling.settings.calibrate else str(name), list(sampling.notes))
        if sampling.settings.calibrate:
            outcome._measure(sampling)
        return outcome

    def _measure(self, sampling: HostRun) -> None:
        moments = sampling.moments
        if moments is None:
            self.problem = "the run was not finished"
            return
        if any(run.unsupported for _, run in sampling._runs):
            self.problem = "the model's blocks could not be followed"
            return
        try:
            levels = [self.place.flow[step - sampling._first] for step in moments.steps]
            self.calibration = moments.calibration(
                levels, {"versions": versions(), "host": "ComfyUI", "scope": self.report.scope}
            )
        except ArgumentError as error:
            self.problem = str(error)

    @property
    def schedule(self) -> Schedule:
        """What ran."""
        assert self.report.schedule is not None
        return self.report.schedule

    @property
    def text(self) -> str:
        """A few lines for the log and the node."""
        lines = [f"{self.source}: {self.report}"]
        if self.place.partial:
            first = self.place.first
            last = first + len(self.place.levels)
            lines.append(f"evaluations {first + 1} to {last} of a schedule of {self.place.steps}")
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
