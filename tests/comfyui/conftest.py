"""Tests that take the fixture ``comfyui`` run once for each ComfyUI version, in a process that has it imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import load, workers


def pytest_configure(config: pytest.Config) -> None:
    workers.setup(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if workers.FIXTURE in metafunc.fixturenames:
        metafunc.parametrize(workers.FIXTURE, workers.versions(), indirect=True, scope="session")


@pytest.fixture(scope="session")
def comfyui(request: pytest.FixtureRequest) -> Path:
    """The folder of the ComfyUI that is imported here: ``import comfy`` in the test gives this one."""
    return load(request.param)
