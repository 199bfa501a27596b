"""The observer: when a run ends, it adds up what the run did."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import magpolicy
from magpolicy_metrics._instruments import Instruments

if TYPE_CHECKING:
    from typing_extensions import Self

_WAITING = 10_000
"""Calls whose times are still to come, at most: those of a device that never answers are dropped, the oldest first."""


class TimedCall(Protocol):
    """A call that a report knows."""

    @property
    def skipped(self) -> bool:
        """Whether it skipped."""

    @property
    def done(self) -> bool:
        """Whether its time can be read without waiting."""

    @property
    def seconds(self) -> float:
        """Its time."""


class Metrics:
    """Counts the runs of this process. Made by :func:`opentelemetry` and :func:`prometheus`.

    A run is added when it ends, so a step takes no longer, and nothing ever waits for the device: times that an accelerator has
    not measured by then are added when the next run begins or ends. Any number of threads may run models meanwhile.

    As a context manager it counts until the end of the with block.
    """

    __module__ = "magpolicy_metrics"

    def __init__(self, instruments: Instruments, target: tuple[str, Any]) -> None:
        self.target = target
        """Which library they are for, and which meter provider or registry of it; ``None``: that of the process."""
        self._instruments = instruments
        self._lock = threading.Lock()
        self._waiting: deque[tuple[TimedCall, str]] = deque(maxlen=_WAITING)

    @magpolicy.hookimpl
    def on_run_start(self) -> None:
        """Add the times that were still to come."""
        self._add_times(())

    @magpolicy.hookimpl
    def on_run_end(self, session: magpolicy.Session, report: Any) -> None:
        """Add a run."""
        model = getattr(report, "model", "")
        trace = session.trace if report is None else report.trace
        self._instruments.add_run(model)
        for decision, count in Counter(entry.decision for entry in trace).items():
            self._instruments.add_evaluations(count, _kind(decision.skip), decision.reason, model)
        for replan in session.replans:
            self._instruments.add_replan(replan.outcome, model)
        self._add_times([(call, model) for call in getattr(report, "calls", ())])

    def _add_times(self, calls: Sequence[tuple[TimedCall, str]]) -> None:
        with self._lock:
            self._waiting.extend(calls)
            while self._waiting:
                call, model = self._waiting.popleft()  # one that cannot be read is not asked again
                if not call.done:
                    self._waiting.appendleft((call, model))
                    break
                self._instruments.add_call(call.seconds, _kind(call.skipped), model)

    def close(self) -> None:
        """Count no more. Runs under way are not counted; calling it again does nothing."""
        if magpolicy.manager().is_registered(self):
            magpolicy.manager().unregister(self)
            self._instruments.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _kind(skipped: bool) -> str:
    return "skipped" if skipped else "computed"
