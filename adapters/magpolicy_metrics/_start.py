"""Starting to count: what users call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import magpolicy
from magpolicy.adapter import require
from magpolicy_metrics._metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry


def opentelemetry(meter_provider: MeterProvider | None = None) -> Metrics:
    """Count every run of this process from now on, as metrics of OpenTelemetry.

    ``magpolicy.runs`` (unit ``{run}``), ``magpolicy.evaluations`` (``{evaluation}``), ``magpolicy.replans`` (``{replan}``) and
    the histogram ``magpolicy.call.duration`` (``s``), with the attributes ``magpolicy.decision`` (``computed`` or ``skipped``),
    ``magpolicy.reason``, ``magpolicy.outcome`` and ``magpolicy.model``, each where it applies.

    Args:
        meter_provider: where the meter comes from; by default the process's own, which may be set later.

    Returns:
        the metrics; the same ones if that provider has them already.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
    """
    return _registered("opentelemetry", meter_provider)


def prometheus(registry: CollectorRegistry | None = None) -> Metrics:
    """Count every run of this process from now on, as metrics of Prometheus, in a registry of ``prometheus_client``.

    ``magpolicy_runs_total``, ``magpolicy_evaluations_total``, ``magpolicy_replans_total`` and the histogram
    ``magpolicy_call_duration_seconds``, with the labels ``decision`` (``computed`` or ``skipped``), ``reason``, ``outcome`` and
    ``model``, each where it applies. They also work in that library's multiprocess mode.

    Args:
        registry: by default that of the process, which ``prometheus_client.start_http_server`` serves.

    Returns:
        the metrics; the same ones if that registry has them already.

    Raises:
        MissingExtraError: ``prometheus_client`` is not installed.
    """
    return _registered("prometheus", registry)


def _of_opentelemetry(meter_provider: MeterProvider | None) -> Metrics:
    api = require("opentelemetry.metrics", "metrics")
    from magpolicy_metrics._opentelemetry import OpenTelemetryInstruments

    provider = api.get_meter_provider() if meter_provider is None else meter_provider
    return Metrics(OpenTelemetryInstruments(provider), ("opentelemetry", meter_provider))


def _of_prometheus(registry: CollectorRegistry | None) -> Metrics:
    require("prometheus_client", "metrics")
    from magpolicy_metrics._prometheus import PrometheusInstruments

    return Metrics(PrometheusInstruments(registry), ("prometheus", registry))


MADE: dict[str, Callable[[Any], Metrics]] = {"opentelemetry": _of_opentelemetry, "prometheus": _of_prometheus}


def _registered(kind: str, sink: Any) -> Metrics:
    """The metrics that add to ``sink``, made and registered unless they are there."""
    manager = magpolicy.manager()
    for plugin in manager.get_plugins():
        if isinstance(plugin, Metrics) and plugin.target == (kind, sink):
            return plugin
    metrics = MADE[kind](sink)
    manager.register(metrics, name=f"metrics for {kind} {id(metrics):#x}")
    return metrics
