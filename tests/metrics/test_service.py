"""The example of a service runs as it is: it answers requests over loopback, and a scrape tells what they did."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("PIL", reason="the demo extra is not installed")
pytest.importorskip("prometheus_client", reason="the metrics extra is not installed")
from prometheus_client.parser import text_string_to_metric_families

SCRIPT = Path(__file__).parents[2] / "examples" / "serve_metrics.py"


def fetched(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def test_a_service_answers_and_is_counted():
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        try:
            address = served.stdout.readline().strip()
            assert address, served.stderr.read()
            strips = [json.loads(fetched(f"{address}/generate?digit={d}&steps={s}"))["steps"] for d, s in ((3, 12), (7, 20))]
            text = fetched(f"{address}/metrics")
        finally:
            served.kill()
    assert list(map(len, strips)) == [12, 20]
    counted = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, sample.labels.get("decision")
            counted[key] = counted.get(key, 0) + sample.value
    assert counted["magpolicy_runs_total", None] == 2
    assert counted["magpolicy_evaluations_total", "skipped"] == sum(strip.count("·") for strip in strips) > 0
    assert counted["magpolicy_evaluations_total", "computed"] == sum(strip.count("█") for strip in strips)
