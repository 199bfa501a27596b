"""Tests that take the fixture ``comfyui`` run once for each ComfyUI version, in a process that has it imported.

The first version runs every case of a test, any other a sample of them (the mark ``sampled``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from host import DEFAULT, load, workers


def pytest_configure(config: pytest.Config) -> None:
    workers.setup(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if workers.FIXTURE in metafunc.fixturenames:
        metafunc.parametrize(workers.FIXTURE, workers.versions(), indirect=True, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if workers.version_of(item) not in (None, DEFAULT):
            item.add_marker("sampled")


@pytest.fixture(scope="session")
def comfyui(request: pytest.FixtureRequest) -> Path:
    """The folder of the ComfyUI that is imported here: ``import comfy`` in the test gives this one."""
    return load(request.param)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own for the user's calibrations."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def nodes(comfyui: Path) -> dict[str, Any]:
    """The nodes, by the names that ComfyUI knows them by."""
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    return NODE_CLASS_MAPPINGS


@pytest.fixture
def folder(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the nodes' calibrations go, for this test."""
    import folder_paths

    place = tmp_path / "magpolicy"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "magpolicy", ([str(place)], {".json"}))
    return place


@pytest.fixture
def schema(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The nodes in ComfyUI's schema; where that is an early one, it is given the field by which a later one is known."""
    from comfy_api.latest import io

    from magpolicy_comfyui import NODE_DISPLAY_NAME_MAPPINGS
    from magpolicy_comfyui.nodes import _schema

    if _schema.for_host(nodes, NODE_DISPLAY_NAME_MAPPINGS) == nodes:
        later = dataclasses.make_dataclass("Schema", [("search_aliases", Any, None)], bases=(io.Schema,))
        monkeypatch.setattr(io, "Schema", later)
    return _schema.for_host(nodes, NODE_DISPLAY_NAME_MAPPINGS)
