"""The instruments of OpenTelemetry, named as its semantic conventions ask: namespaced, with units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import magpolicy
from magpolicy_metrics import _instruments

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider


class OpenTelemetryInstruments:
    """See :class:`magpolicy_metrics._instruments.Instruments`."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("magpolicy", magpolicy.__version__)
        self._runs = meter.create_counter("magpolicy.runs", "{run}", _instruments.RUNS)
        self._evaluations = meter.create_counter("magpolicy.evaluations", "{evaluation}", _instruments.EVALUATIONS)
        self._replans = meter.create_counter("magpolicy.replans", "{replan}", _instruments.REPLANS)
        self._duration = meter.create_histogram(
            "magpolicy.call.duration",
            "s",
            _instruments.DURATION,
            explicit_bucket_boundaries_advisory=_instruments.BUCKETS,
        )

    def add_run(self, model: str) -> None:
        self._runs.add(1, _attributes(model))

    def add_evaluations(self, count: int, decision: str, reason: str, model: str) -> None:
        self._evaluations.add(count, _attributes(model, decision=decision, reason=reason))

    def add_replan(self, outcome: str, model: str) -> None:
        self._replans.add(1, _attributes(model, outcome=outcome))

    def add_call(self, seconds: float, decision: str, model: str) -> None:
        self._duration.record(seconds, _attributes(model, decision=decision))

    def close(self) -> None:
        """The provider keeps its instruments."""


def _attributes(model: str, **others: str) -> dict[str, str]:
    """Attributes by their full names; that of a model there is none of is left out."""
    named = {**others, "model": model} if model else others
    return {f"magpolicy.{name}": value for name, value in named.items()}
