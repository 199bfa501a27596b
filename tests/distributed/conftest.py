"""One pair of ranks for all tests of this folder; see ``harness.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Pair

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def _pair() -> Iterator[Pair]:
    pytest.importorskip("torch", reason="the torch extra is not installed")
    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    return _pair
