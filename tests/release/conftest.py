"""Loads the tools, which are scripts and no package."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tool, tmp_path_factory):
    """The wheel and the source distribution of these sources."""
    pytest.importorskip("build", reason="the dev extra is not installed")
    pytest.importorskip("hatchling", reason="the dev extra is not installed")
    return tool("distributions").build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def tool():
    """``tool(name)`` is the module ``tools/NAME.py``."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
