"""What a sampling did, for people: lines of text, values for the browser, a curve if it was measured."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from attrs import Factory, define

from magpolicy import ArgumentError, Curve, Schedule
from magpolicy_torch._report import Report

if TYPE_CHECKING:
    from magpolicy_comfyui._noise import Place
    from magpolicy_comfyui._sampling import Sampling


@define(eq=False)
class Outcome:
    """The outcome of one sampling."""

    report: Report
    place: Place
    source: str
    """The preset that decided, by name."""
    notes: list[str] = Factory(list)
    curve: Curve | None = None
    """Of a calibration: what was measured."""
    problem: str = ""
    """Of a calibration: why nothing was."""

    @classmethod
    def of(cls, sampling: Sampling) -> Outcome | None:
        """The outcome of ``sampling``; ``None`` if nothing was evaluated under a policy."""
        session, place = sampling.session, sampling.place
        if session is None or place is None or not session.trace:
            return None
        report = Report.of(session, sampling.record, sampling._scope)
        source = sampling._source
        name = getattr(source, "name", "") or (source if isinstance(source, str) else type(source).__name__)
        outcome = cls(report, place, "calibration" if sampling.settings.calibrate else str(name), list(sampling.notes))
        if sampling.settings.calibrate:
            outcome._measure(sampling)
        return outcome

    def _measure(self, sampling: Sampling) -> None:
        norms = sampling._norms
        if not norms or any(run.unsupported for _, run in sampling._runs.values()):
            self.problem = "the model's blocks could not be followed"
            return
        most = max(map(len, norms.values()))
        whole = {name: values for name, values in norms.items() if len(values) == most}
        levels = list(self.place.flow)
        ordered = len(levels) == most and all(a > b for a, b in itertools.pairwise(levels))
        try:
            self.curve = Curve.from_norms(whole, sigmas=levels if ordered else None)
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
