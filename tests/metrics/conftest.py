"""Both libraries behind one door: what a test counts is read from OpenTelemetry's own reader, or Prometheus' own registry."""

import pytest
from attrs import frozen

import magpolicy_metrics


@frozen
class Counted:
    """Numbers by name and labels: those of OpenTelemetry under the names that Prometheus gives them."""

    read: object

    def of(self, name, **labels):
        """The sum of a counter's values, or a histogram's ``_count`` or ``_sum``, over all that have these labels."""
        return sum(v for (n, have), v in self.read().items() if n == name and labels.items() <= dict(have).items())

    def by(self, name, *wanted):
        """The values of a counter by some labels."""
        found = {}
        for (n, have), value in self.read().items():
            if n == name:
                key = tuple(dict(have).get(label, "") for label in wanted)
                found[key] = found.get(key, 0) + value
        return found


def of_prometheus(registry):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def of_opentelemetry(reader):
    data, found = reader.get_metrics_data(), {}
    for metric in [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []:
        name = metric.name.replace(".", "_")
        for point in metric.data.data_points:
            labels = tuple(sorted((key.removeprefix("magpolicy."), value) for key, value in point.attributes.items()))
            if metric.unit == "s":
                found[f"{name}_seconds_count", labels] = point.count
                found[f"{name}_seconds_sum", labels] = point.sum
            else:
                found[f"{name}_total", labels] = point.value
    return found


@pytest.fixture(params=["opentelemetry", "prometheus"])
def start(request):
    """Start to count with a fresh provider or registry; returns the metrics and what they counted."""
    started = []

    def begin():
        if request.param == "prometheus":
            prometheus_client = pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
            registry = prometheus_client.CollectorRegistry()
            metrics, counted = magpolicy_metrics.prometheus(registry), Counted(lambda: of_prometheus(registry))
        else:
            sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="the dev extra is not installed")
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader

            reader = InMemoryMetricReader()
            provider = sdk.MeterProvider([reader])
            metrics, counted = magpolicy_metrics.opentelemetry(provider), Counted(lambda: of_opentelemetry(reader))
            started.append(provider.shutdown)
        started.append(metrics.close)
        return metrics, counted

    yield begin
    for undo in started:
        undo()
