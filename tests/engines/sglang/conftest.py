"""The engine is imported in a process of its own, once; it takes ten seconds to a minute. All tests ask that one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_process.asking import Engine
from fetching import Unavailable
from sglang_engine.fetch import obtain

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def code() -> Path:
    """The folder with SGLang's code."""
    for needed in ("torch", "diffusers", "transformers"):
        pytest.importorskip(needed)
    try:
        return obtain()
    except Unavailable as error:
        pytest.skip(f"no SGLang: {error}")


@pytest.fixture(scope="session")
def engine(code: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """SGLang, in a process of its own."""
    variables = {"SGLANG_PLUGINS": "magpolicy", "MAGPOLICY_SGLANG": ""}
    found = Engine("sglang_engine.scenarios", [code, HERE], tmp_path_factory.mktemp("sglang"), variables)
    yield found
    found.close()
