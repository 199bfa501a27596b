"""Bills of materials and lists of licences are made by their tools; here of the environment that runs the tests."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("cyclonedx_py", reason="the dev extra is not installed")
pytest.importorskip("piplicenses", reason="the dev extra is not installed")
ROOT = Path(__file__).parents[2]


def test_both_lists_name_what_is_installed(tool, tmp_path):
    tool("bill_of_materials").describe(Path(sys.executable), "here", tmp_path)
    bill = json.loads((tmp_path / "here.cdx.json").read_text(encoding="utf-8"))
    listed = {component["name"].lower() for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert {"numpy", "attrs", "pluggy", "lazy-loader", "platformdirs"} <= listed
    licences = (tmp_path / "here.licences.md").read_text(encoding="utf-8")
    assert "| numpy " in licences
    assert "Apache" in licences


def test_every_extra_of_a_users_is_listed_or_said_why_not(tool):
    bill = tool("bill_of_materials")
    text = (ROOT / "tools" / "bill_of_materials.py").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    users = project.partition("[project.optional-dependencies]")[2].partition("# What a developer installs")[0]
    names = {line.partition(" = ")[0] for line in users.splitlines() if " = [" in line and not line.startswith((" ", "#"))}
    assert names - set(bill.EXTRAS) == {name for name in names if f"`{name}`" in text}
