"""Bills of materials and lists of licences are made by their tools; here of a new environment with the wheel alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import magpolicy

pytest.importorskip("cyclonedx_py", reason="the dev extra is not installed")
pytest.importorskip("piplicenses", reason="the dev extra is not installed")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_both_lists_name_what_is_installed(tool, built, tmp_path):
    bill = tool("bill_of_materials")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", built[0]], check=True)
    bill.describe(python, "bare", tmp_path)
    listed = json.loads((tmp_path / "bare.cdx.json").read_text(encoding="utf-8"))
    assert listed["bomFormat"] == "CycloneDX"
    assert {component["name"]: component["version"] for component in listed["components"]}["magpolicy"] == magpolicy.__version__
    licences = (tmp_path / "bare.licences.md").read_text(encoding="utf-8")
    assert [line for line in licences.splitlines() if "| magpolicy " in line and "| Apache-2.0 " in line]


def test_every_extra_of_a_users_is_listed_or_said_why_not(tool):
    bill = tool("bill_of_materials")
    text = (ROOT / "tools" / "bill_of_materials.py").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    users = project.partition("[project.optional-dependencies]")[2].partition("# What a developer installs")[0]
    names = {line.partition(" = ")[0] for line in users.splitlines() if " = [" in line and not line.startswith((" ", "#"))}
    assert names - set(bill.EXTRAS) == {name for name in names if f"`{name}`" in text}
