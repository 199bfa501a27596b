"""The collectors of Prometheus."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from magpolicy_metrics import _instruments


class PrometheusInstruments:
    """See :class:`magpolicy_metrics._instruments.Instruments`."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self._registry = prometheus_client.REGISTRY if registry is None else registry
        self._runs = Counter("magpolicy_runs", _instruments.RUNS, ["model"], registry=self._registry)
        self._evaluations = Counter(
            "magpolicy_evaluations", _instruments.EVALUATIONS, ["decision", "reason", "model"], registry=self._registry
        )
        self._replans = Counter("magpolicy_replans", _instruments.REPLANS, ["outcome", "model"], registry=self._registry)
        self._duration = Histogram(
            "magpolicy_call_duration_seconds",
            _instruments.DURATION,
            ["decision", "model"],
            registry=self._registry,
            buckets=_instruments.BUCKETS,
        )

    def add_run(self, model: str) -> None:
        self._runs.labels(model).inc()

    def add_evaluations(self, count: int, decision: str, reason: str, model: str) -> None:
        self._evaluations.labels(decision, reason, model).inc(count)

    def add_replan(self, outcome: str, model: str) -> None:
        self._replans.labels(outcome, model).inc()

    def add_call(self, seconds: float, decision: str, model: str) -> None:
        self._duration.labels(decision, model).observe(seconds)

    def close(self) -> None:
        """Take the collectors out of the registry."""
        for collector in (self._runs, self._evaluations, self._replans, self._duration):
            self._registry.unregister(collector)
