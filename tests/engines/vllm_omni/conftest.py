"""The engine is imported in a process of its own: it patches libraries, and takes ten seconds. All tests ask that one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_process.asking import Engine
from fetching import Unavailable
from vllm_engine.fetch import obtain

HERE = Path(__file__).parent


_VARIABLES = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "magpolicy"}


@pytest.fixture(scope="session")
def code() -> Path:
    """The folder with vLLM-Omni's code."""
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    try:
        return obtain()
    except Unavailable as error:
        pytest.skip(f"no vLLM-Omni: {error}")


@pytest.fixture(scope="session")
def engine(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM-Omni, in a process of its own."""
    yield from _started("vllm_engine.scenarios", code, tmp_path_factory.mktemp("vllm-omni"))


@pytest.fixture(scope="session")
def together(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same, where each scenario is a process of its own: for workers that share a request."""
    yield from _started("vllm_engine.together", code, tmp_path_factory.mktemp("vllm-omni-together"))


def _started(scenarios: str, code: Path, home: Path) -> Iterator[Engine]:
    found = Engine(scenarios, [code, HERE, HERE.parents[1] / "diffusers"], home, _VARIABLES)
    yield found
    found.close()
