"""One server per ComfyUI version for all tests here: the nodes put in by `magpolicy comfyui install`, and a pack of tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Server, Unavailable, serve, workers

COMFYUI_TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session", params=workers.versions())
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def add_tiny_pack(base: Path) -> None:
    """Put `tiny_pack` into the custom_nodes of ``base``."""
    text = f"import sys\nsys.path.append({str(COMFYUI_TESTS)!r})\nfrom tiny_pack import NODE_CLASS_MAPPINGS\n"
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / "tiny.py").write_text(text)


@pytest.fixture(scope="session")
def server(version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("torch")
    from browser import front_end

    from magpolicy_comfyui import _install

    base = tmp_path_factory.mktemp(f"comfyui-{version}")
    add_tiny_pack(base)
    _install.install(base)
    try:
        pages = ("--front-end-root", str(front_end(version)))
        with serve(base, version, arguments=pages, front_end=True) as up:
            yield up
    except Unavailable as error:
        pytest.skip(str(error))
