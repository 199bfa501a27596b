"""What is noted of a run while it is under way, beside the session's trace. Reports are made of it."""

from __future__ import annotations

from attrs import Factory, define, evolve

from magpolicy import Decision, TraceEntry
from magpolicy_torch.device._timer import Timer
from torch import Tensor


@define(eq=False)
class Record:
    """What a run did, beside its decisions."""

    past_end: list[str] = Factory(list)
    """Streams of the evaluations after the run's last step."""
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

    def problem(self, words: str) -> None:
        """Note a problem, once."""
        if words and words not in self.problems:
            self.problems.append(words)
