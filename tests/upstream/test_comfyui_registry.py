"""``upstream/comfyui-registry``: the registry finds what it reads, and ``requirements.txt`` has what the pack needs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    try:
        import tomllib
    except ImportError:
        tomllib = pytest.importorskip("tomli", reason="the files extra is not installed")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_finds_what_it_reads(project):
    about, comfy = project["project"], project["tool"]["comfy"]
    assert all(about[name] for name in ("name", "version", "description", "license"))
    assert about["urls"]["Repository"].startswith("https://")
    assert comfy["PublisherId"]
    assert len(comfy["DisplayName"]) <= 100
    assert set(comfy) >= {"PublisherId", "DisplayName", "Icon"}


def test_the_pack_asks_for_what_its_extra_asks_for(project):
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = {line for line in lines if line and not line.startswith("#")}
    extras = project["project"]["optional-dependencies"]
    needed = {*project["project"]["dependencies"], *extras["files"], *(x for x in extras["comfyui"] if "magpolicy" not in x)}
    assert {line.replace("'", '"') for line in needed} <= asked
