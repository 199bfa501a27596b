"""What is counted, by name: the same in every library that exports it."""

from __future__ import annotations

from typing import Protocol

RUNS = "Runs that ended, also early or by an exception."
EVALUATIONS = "Evaluations of a stream, by decision and reason, as a report counts them."
REPLANS = "Runs' departures from their plans, by what became of the rest."
DURATION = "Time of one call of the model, which may hold several streams."

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: from a skip of an image model to a computed step of a large video model."""


class Instruments(Protocol):
    """Where a run is added. Every method may be called from several threads at once."""

    def add_run(self, model: str) -> None:
        """One run of ``model``, a class name, or empty where there is none."""

    def add_evaluations(self, count: int, decision: str, reason: str, model: str) -> None:
        """So many evaluations, ``"computed"`` or ``"skipped"``, for one reason."""

    def add_replan(self, outcome: str, model: str) -> None:
        """One departure from a plan: the rest was ``"replanned"``, or ``"computes"``."""

    def add_call(self, seconds: float, decision: str, model: str) -> None:
        """The time of one call."""

    def close(self) -> None:
        """Nothing more will be added."""
