"""What a run did, and how long it took."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from attrs import Factory, evolve, field, frozen

import torch
from magpolicy import Decision, Replan, Schedule, Session, TraceEntry
from magpolicy_torch.device._timer import Timer
from magpolicy_torch.evaluation._record import Record
from magpolicy_torch.host._reasons import untold
from torch import Tensor

_REST = {"replanned": "was planned again", "computes": "computes"}


@frozen
class TimedCall:
    """One call of the model in a run."""

    __module__ = "magpolicy_torch"

    skipped: bool
    """Whether the blocks were skipped, for all streams of the call."""
    _lap: Timer | float = field(repr=False)

    @property
    def done(self) -> bool:
        """Whether the device is through with it, so that ``seconds`` need not wait."""
        return isinstance(self._lap, float) or self._lap.done

    @property
    def seconds(self) -> float:
        """How long it took. Waits for the device."""
        return self._lap if isinstance(self._lap, float) else self._lap.seconds


@frozen
class Report:
    """What a run did."""

    __module__ = "magpolicy_torch"

    trace: tuple[TraceEntry, ...] = field(repr=False)
    """Every decision, also those after the run's last step (``Decision.PAST_END``), and those of evaluations that the run was
    not known to make (``Decision.UNLISTED``), in the order they were made: with such, every evaluation has a number of its own.
    """
    schedule: Schedule | None
    """The steps of the run, with its forecasts and, where it did as planned, the errors expected of them; ``None`` if nothing
    was evaluated."""
    scope: str = "stack"
    """What a skip left out: the block ``"stack"``, or the whole ``"model"``."""
    forecasts: int = 0
    """Skipped evaluations whose residual was forecast from the last two or three computed ones."""
    held: Mapping[str, int] = Factory(dict)
    """Skipped evaluations whose residual was to be forecast but was held, by reason: ``"doubtful"`` where the run showed that
    residuals do not keep their direction as the general prior expects."""
    replans: tuple[Replan, ...] = ()
    """Where the run left its plan, with ``attach(..., safeguard=True)``."""
    source: str = ""
    """What decided, in words: the rule on a preset, a plan from a calibration. Empty where every step computes."""
    advice: str = ""
    """One thing to do that would bring runs closer to the full run at the same speed; empty if there is none."""
    problems: tuple[str, ...] = ()
    """In words: in what the run differs from what was asked, since it is too short for it; why calls computed that could have
    skipped (``reasons`` counts them all); and in what the run differs from the one that its calibration was measured in."""
    model: str = ""
    """Class of the model that was called; of two experts that of the first. Empty where a function was called."""
    calls: tuple[TimedCall, ...] = field(default=(), repr=False, eq=False)
    """Each call of the model within the run, in order, with its time."""
    _losses: tuple[Tensor, ...] = field(default=(), repr=False, eq=False)

    @classmethod
    def of(cls, session: Session, record: Record, scope: str = "stack", model: str = "") -> Report:
        """The report of a run so far. Does not wait for the device."""
        carried_out = [record.as_carried_out(entry) for entry in session.trace]
        trace = record.in_order(carried_out)
        schedule = Schedule.from_trace(trace, plan=None if record.unlisted else session.schedule) if trace else None
        beyond: Counter[str] = Counter()
        for stream in record.past_end:
            step = session.steps + beyond[stream]
            trace.append(TraceEntry(step, stream, None, Decision.PAST_END, 1.0, 0.0, 0))
            beyond[stream] += 1
        skips = [(e.step, e.stream) for e in carried_out if e.decision.skip]
        forecasts = [record.forecasts[key] for key in skips if key in record.forecasts]
        held = Counter(why.reason for why in forecasts if why is not None)
        if doubted := len(set(session.doubted).intersection(skips)):
            held["doubtful"] = doubted
        return cls(
            tuple(trace),
            schedule,
            scope,
            forecasts.count(None),
            dict(held),
            session.replans,
            session.source,
            session.advice if skips else "",  # a run in full is the full run
            (*filter(None, [session.differs]), *record.problems, *untold(carried_out, record)),
            model,
            tuple(TimedCall(skipped, lap) for skipped, lap in record.laps),
            tuple(record.losses),
        )

    @classmethod
    def together(cls, reports: Sequence[Report], plan: Schedule | None = None) -> Report:
        """One report of runs that were made at once, each of other streams, such as one a device.

        Args:
            reports: at least one, of runs by the same settings.
            plan: the schedule that they followed.
        """
        first = reports[0]
        if len(reports) == 1:
            return first
        trace = sorted((entry for report in reports for entry in report.trace), key=lambda entry: entry.step)
        within = [entry for entry in trace if entry.decision is not Decision.PAST_END]
        if any(entry.decision is Decision.UNLISTED for entry in within):
            plan = None  # its steps have other numbers
        return evolve(
            first,
            trace=tuple(trace),
            schedule=Schedule.from_trace(within, plan=plan) if within else None,
            forecasts=sum(report.forecasts for report in reports),
            held=dict(sum((Counter(report.held) for report in reports), Counter())),
            replans=tuple(replan for report in reports for replan in report.replans),
            problems=tuple(dict.fromkeys(problem for report in reports for problem in report.problems)),
            calls=tuple(call for report in reports for call in report.calls),
            losses=tuple(loss for report in reports for loss in report._losses),
        )

    @property
    def computed(self) -> int:
        """Number of steps at which the blocks ran in any stream."""
        return len({e.step for e in self.trace if e.decision.computes})

    @property
    def skipped(self) -> int:
        """Number of steps at which every stream reused its residual."""
        return len({e.step for e in self.trace}) - len({e.step for e in self.trace if not e.decision.skip})

    @property
    def storage_error(self) -> float | None:
        """Relative error that ``storage_dtype`` makes in a residual, mean over the run; ``None`` without it. Waits for the
        device."""
        return float(torch.stack(self._losses).mean()) if self._losses else None

    @property
    def strip(self) -> str:
        """One character a step: a block computes, a dot skips."""
        return "" if self.schedule is None else self.schedule.strip

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason decided, all streams counted."""
        return dict(Counter(e.decision.reason for e in self.trace))

    @property
    def seconds(self) -> dict[str, float]:
        """Median seconds of an evaluation of the model: ``"computed"`` and ``"skipped"``, those that occurred."""
        kinds = {"computed": self._seconds(False), "skipped": self._seconds(True)}
        return {kind: statistics.median(seconds) for kind, seconds in kinds.items() if seconds}

    @property
    def estimated_speedup(self) -> float | None:
        """Evaluations over computed evaluations: the speedup if skips took no time."""
        return None if self.schedule is None else self.schedule.speedup

    @property
    def measured_speedup(self) -> float | None:
        """Estimated time of the run's evaluations if all computed, over their measured time. The time of the model only."""
        computed, skipped = self._seconds(False), self._seconds(True)
        if not computed:
            return None
        total = sum(computed) + sum(skipped)
        full = sum(computed) + len(skipped) * statistics.median(computed)
        return full / total if total > 0 else None

    def _seconds(self, skip: bool) -> list[float]:
        return [call.seconds for call in self.calls if call.skipped is skip]

    def _repr_html_(self) -> str:
        """What notebooks show: the steps as a picture, and the report's lines under it."""
        picture = "" if self.schedule is None else self.schedule._repr_html_()
        lines = "".join(f"<li>{escape(line)}</li>" for line in str(self).splitlines()[self.schedule is not None :])
        return f"{picture}<ul>{lines}</ul>"

    def __str__(self) -> str:
        if self.schedule is None:
            return "nothing was evaluated"
        reasons = _listed(f"{reason} {n}" for reason, n in self.reasons.items())
        streams = len({e.stream for e in self.trace})
        lines = [str(self.schedule), f"{reasons}, counted in each of {streams} streams" if streams > 1 else reasons]
        if self.forecasts or self.held:
            why = f", held {sum(self.held.values())} ({_listed(self.held)})" if self.held else ""
            lines.append(f"forecast {self.forecasts} of {self.reasons.get('reused', 0)} reused{why}")
        if "doubtful" in self.held:
            lines.append("the residual does not keep its direction as the general prior expects: such skips hold it")
        for replan in self.replans:
            off = f"{replan.measured:.3f} measured, {replan.expected:.3f} expected"
            lines.append(f"left its plan at step {replan.step} ({replan.stream}: {off}), the rest {_REST[replan.outcome]}")
        times = [f"{kind} {1000 * seconds:.3g} ms" for kind, seconds in self.seconds.items()]
        if times and self.measured_speedup is not None:
            lines.append(_listed([*times, f"{self.measured_speedup:.2f}x measured in the model"]))
        if self.source:
            lines.append(f"by {self.source}")
        if self.advice:
            lines.append(f"closer to the full run: {self.advice}")
        if self.storage_error is not None:
            lines.append(f"residuals kept with an error of {self.storage_error:.2g}")
        if self.scope == "model":
            lines.append("scope: the whole model")
        lines.extend(self.problems)
        return "\n".join(lines)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
