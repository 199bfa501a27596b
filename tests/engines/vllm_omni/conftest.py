"""The engine is imported in a process of its own: it patches libraries, and takes ten seconds. All tests ask that one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_process.asking import Engine
from fetching import Unavailable
from vllm_engine.fetch import obtain

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """vLLM-Omni, in a process of its own."""
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    try:
        code = obtain()
    except Unavailable as error:
        pytest.skip(f"no vLLM-Omni: {error}")
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "magpolicy"}
    paths = [code, HERE, HERE.parents[1] / "diffusers"]
    found = Engine("vllm_engine.scenarios", paths, tmp_path_factory.mktemp("vllm-omni"), variables)
    yield found
    found.close()
