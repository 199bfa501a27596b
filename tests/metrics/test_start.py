"""Starting to count: by one line or by the environment, once, in one process or in several, and what a scrape then gives."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest

import magpolicy
import magpolicy_metrics
from magpolicy import MissingExtraError, Schedule, Session

RUN = """
import magpolicy
def run():
    with magpolicy.Session(magpolicy.Schedule.from_mask([1, 0, 1, 0, 0])) as session:
        for _ in range(session.steps):
            session.decide("cond")
            session.commit()
"""
BY_ENVIRONMENT = """
from magpolicy_metrics._plugin import plugin
if not magpolicy.manager().is_registered(plugin):  # this environment was installed before the plugin was there
    magpolicy.manager().register(plugin)
"""


def run():
    with Session(Schedule.from_mask([1, 0, 1, 0, 0])) as session:
        for _ in range(session.steps):
            session.decide("cond")
            session.commit()


def python(program, **environment):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", RUN + program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_scrape_over_http():
    prometheus_client = pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
    from prometheus_client.parser import text_string_to_metric_families

    registry = prometheus_client.CollectorRegistry()
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        with magpolicy_metrics.prometheus(registry):
            run()
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {family.name: family.type for family in families.values() if not family.name.endswith("_created")} == {
        "magpolicy_runs": "counter",
        "magpolicy_evaluations": "counter",
        "magpolicy_replans": "counter",
        "magpolicy_call_duration_seconds": "histogram",
    }
    samples = {(s.name, s.labels.get("reason")): s.value for s in families["magpolicy_evaluations"].samples}
    assert samples["magpolicy_evaluations_total", "scheduled"] == 2
    assert samples["magpolicy_evaluations_total", "reused"] == 3


def test_opentelemetry_names_and_units():
    sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="the dev extra is not installed")
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    with magpolicy_metrics.opentelemetry(provider):
        run()
        (resource,) = reader.get_metrics_data().resource_metrics
    provider.shutdown()
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("magpolicy", magpolicy.__version__)
    assert {m.name: m.unit for m in scope.metrics} == {"magpolicy.runs": "{run}", "magpolicy.evaluations": "{evaluation}"}
    points = next(m for m in scope.metrics if m.name == "magpolicy.evaluations").data.data_points
    assert [dict(point.attributes) for point in points] == [
        {"magpolicy.decision": "computed", "magpolicy.reason": "scheduled"},
        {"magpolicy.decision": "skipped", "magpolicy.reason": "reused"},
    ]


def test_starting_twice_counts_once(start):
    _, counted = start()
    (plugin,) = [p for p in magpolicy.manager().get_plugins() if isinstance(p, magpolicy_metrics.Metrics)]
    kind, sink = plugin.target
    assert getattr(magpolicy_metrics, kind)(sink) is plugin
    run()
    assert counted.of("magpolicy_runs_total") == 1


def test_starting_again_after_the_end():
    prometheus_client = pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
    registry = prometheus_client.CollectorRegistry()
    for _ in range(2):
        with magpolicy_metrics.prometheus(registry):
            run()
            assert registry.get_sample_value("magpolicy_runs_total", {"model": ""}) == 1
    assert list(registry.collect()) == []


@pytest.mark.parametrize(
    ("start", "module"),
    [(magpolicy_metrics.opentelemetry, "opentelemetry.metrics"), (magpolicy_metrics.prometheus, "prometheus_client")],
)
def test_without_the_library_the_extra_is_named(monkeypatch, start, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} is needed here; pip install 'magpolicy\[metrics\]'"):
        start()


def test_the_process_own_registry():
    pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
    program = """
import magpolicy_metrics, prometheus_client
magpolicy_metrics.prometheus()
assert magpolicy_metrics.prometheus() is magpolicy_metrics.prometheus()
run()
print(prometheus_client.REGISTRY.get_sample_value("magpolicy_runs_total", {"model": ""}))
"""
    assert python(program) == "1.0\n"


def test_the_process_own_provider_may_come_later():
    pytest.importorskip("opentelemetry.sdk.metrics", reason="the dev extra is not installed")
    program = """
import magpolicy_metrics
magpolicy_metrics.opentelemetry()
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
magpolicy_metrics.opentelemetry()
run()
(resource,) = reader.get_metrics_data().resource_metrics
print([p.value for s in resource.scope_metrics for m in s.metrics if m.name == "magpolicy.runs" for p in m.data.data_points])
"""
    assert python(program) == "[1]\n"


def test_the_environment_asks_for_it():
    pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
    program = """
import magpolicy_metrics, prometheus_client
run()
assert magpolicy_metrics.prometheus() is plugin
run()
print(prometheus_client.REGISTRY.get_sample_value("magpolicy_runs_total", {"model": ""}))
"""
    assert python(BY_ENVIRONMENT + program, MAGPOLICY_METRICS="Prometheus") == "2.0\n"


@pytest.mark.parametrize("word", ["", "0"])
def test_the_environment_asks_for_nothing(word):
    program = "run()\nimport sys\nprint('prometheus_client' in sys.modules, 'opentelemetry' in sys.modules)"
    assert python(BY_ENVIRONMENT + program, MAGPOLICY_METRICS=word) == "False False\n"


def test_the_environment_asks_for_what_there_is_not(monkeypatch):
    from magpolicy_metrics import _plugin

    monkeypatch.setenv("MAGPOLICY_METRICS", "statsd")
    with pytest.raises(
        magpolicy.ArgumentError, match="MAGPOLICY_METRICS='statsd' is not known; use one of 'opentelemetry', 'pro"
    ):
        _plugin.chosen()


def test_several_processes_share_a_registry(tmp_path):
    """In prometheus_client's multiprocess mode, as a server with worker processes uses it."""
    pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "MAGPOLICY_METRICS": "prometheus"}
    for _ in range(2):
        python(BY_ENVIRONMENT + "run()", **shared)
    program = """
import json
from prometheus_client import CollectorRegistry, multiprocess
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(json.dumps([registry.get_sample_value("magpolicy_evaluations_total", {"model": "", "decision": d, "reason": r})
                  for d, r in (("computed", "scheduled"), ("skipped", "reused"))]))
"""
    assert json.loads(python(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))) == [4, 6]
