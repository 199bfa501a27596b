"""``benchmarks/gpu.sh`` runs, in its tiny size, on the CPU. What it is for, a GPU, was not there yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cache_dit", reason="the dev extra is not installed")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def run(*options, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(["bash", SCRIPT, *options], env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_it_writes_a_page_with_a_row_for_each_contender(tmp_path):
    done = run("--tiny", "--sections", "eager-flux", "graphs-wide", OUT=str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert page.startswith("# Measured on ")
    assert "The figures say nothing" in page
    eager, graphs = page.split("## ")[1:]
    assert "| plain |" in eager
    assert "| 8 of 8 |" in eager
    assert "| a plan, speedup=2 |" in graphs
    for row in [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| |")]:
        assert "Error" not in row, row
    assert "failed" not in page
    assert "Stopped" not in page


def test_time_that_runs_out_is_told(tmp_path):
    done = run("--tiny", "--sections", "eager-flux", "--budget", "5", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Not run: no time was left." in (tmp_path / "gpu.md").read_text(encoding="utf-8")


def test_all_sections_fit_into_twelve_minutes(tmp_path):
    text = (ROOT / "benchmarks" / "gpu.py").read_text(encoding="utf-8")
    budget = int(text.partition("\nBUDGET = ")[2].partition("\n")[0])
    assert budget <= 12 * 60 - 15  # and the time to write and to start
