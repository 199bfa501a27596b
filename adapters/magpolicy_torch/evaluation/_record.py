"""What is noted of a run while it is under way, beside the session's trace. Reports are made of it."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import Factory, define, evolve, frozen

from magpolicy import Decision, TraceEntry
from magpolicy_torch.device._timer import Timer
from torch import Tensor


@frozen
class Unlisted:
    """One stream of an evaluation that has no place in the run; it computed."""

    evaluation: int
    """Which of the host's evaluations it belongs to: of one evaluation, several calls may be made."""
    stream: str
    sigma: float | None
    decided: int
    """Decisions of the run before it."""


@define(eq=False)
class Record:
    """What a run did, beside its decisions."""

    past_end: list[str] = Factory(list)
    """Streams of the evaluations after the run's last step."""
    unlisted: list[Unlisted] = Factory(list)
    """Evaluations that the run was not known to make."""
    other_cache: str = ""
    """Another cache that was at work in a model, and what that means for the run, in words."""
    laps: list[tuple[bool, Timer | float]] = Factory(list)
    """Per evaluation, whether it skipped, and how many seconds it took; on an accelerator, what tells once it is done."""
    forecasts: dict[tuple[int, str], Decision | None] = Factory(dict)
    """Per step and stream whose residual was to be forecast: why it was held instead, if it was."""
    losses: list[Tensor] = Factory(list)
    """Relative error of each residual as it was kept, where that is narrower than it was."""
    problems: list[str] = Factory(list)
    """Why calls computed that could have skipped, in words."""

    def forecast(self, step: int, stream: str, held: Decision | None) -> None:
        """Note a forecast; of several at one evaluation (a second stream of tokens) one that was held counts."""
        self.forecasts[step, stream] = held or self.forecasts.get((step, stream))

    def as_carried_out(self, entry: TraceEntry) -> TraceEntry:
        """The entry, without a forecast that was decided but could not be made."""
        held = self.forecasts.get((entry.step, entry.stream)) is not None
        return evolve(entry, coefficients=()) if held else entry

    def in_order(self, decided: Iterable[TraceEntry]) -> list[TraceEntry]:
        """All evaluations in the order they were made. Where some have no place in the run, all are numbered anew."""
        entries = list(decided)
        if not self.unlisted:
            return entries
        timeline: list[tuple[object, TraceEntry]] = [((entry.step,), entry) for entry in entries]
        for more in reversed(self.unlisted):
            entry = TraceEntry(0, more.stream, more.sigma, Decision.UNLISTED, 1.0, 0.0, 0)
            timeline.insert(more.decided, (more.evaluation, entry))
        start, numbers = entries[0].step if entries else 0, dict[object, int]()
        return [evolve(entry, step=start + numbers.setdefault(key, len(numbers))) for key, entry in timeline]

    def problem(self, words: str) -> None:
        """Note a problem, once."""
        if words and words not in self.problems:
            self.problems.append(words)
