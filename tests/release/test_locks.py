"""The locks pin every package with hashes, agree with constraints.txt, and name no index. Writing them anew needs a network."""

import re
from pathlib import Path

import pytest

pytest.importorskip("packaging", reason="the cli extra is not installed")
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
ENTRY = re.compile(r"^(?P<what>[A-Za-z].*?) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def entries(path):
    found = [Requirement(match["what"]) for match in ENTRY.finditer(path.read_text(encoding="utf-8"))]
    return [requirement for requirement in found if holds(requirement.marker)]


def holds(marker: Marker | None) -> bool:
    return marker is None or marker.evaluate({"extra": ""})


def pinned(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): pinned(each) for each in found if holds(each.marker)}


def project():
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_line_is_a_pin_with_hashes_and_no_address(path):
    text = path.read_text(encoding="utf-8")
    rest = ENTRY.sub("", text)
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []
    assert "://" not in text
    assert "--index" not in text
    assert len(entries(path)) > 10


@pytest.mark.parametrize("name", ["core", "release", "full"])
def test_a_lock_has_the_versions_of_the_constraints(name):
    known = constraints()
    differ = [
        str(each) for each in entries(ROOT / "locks" / f"{name}.txt") if known.get(canonicalize_name(each.name)) != pinned(each)
    ]
    assert not differ, f"constraints.txt has others: {differ}; run: python tools/lock.py"


@pytest.mark.parametrize("name", ["core", "release", "full"])
def test_a_lock_has_what_the_project_asks_for(tool, name):
    extras, _ = tool("lock").LOCKS[name]
    asked, extra_of = list(project()["dependencies"]), project()["optional-dependencies"]
    waiting = list(extras)
    while waiting:
        for text in extra_of[waiting.pop()]:
            requirement = Requirement(text)
            (waiting.extend(requirement.extras) if requirement.name == "magpolicy" else asked.append(text))
    locked = {canonicalize_name(each.name) for each in entries(ROOT / "locks" / f"{name}.txt")} | {"torch"}
    wanted = {canonicalize_name(each.name) for each in map(Requirement, asked) if holds(each.marker)}
    assert not wanted - locked, "run: python tools/lock.py"


def test_the_full_lock_leaves_torch_to_the_machine(tool):
    names = [each.name for each in entries(ROOT / "locks" / "full.txt")]
    assert not [name for name in names if tool("lock").OF_TORCHS_BUILD.match(name)]
