"""One server per ComfyUI version for all tests here: the nodes put in by `magpolicy comfyui install`, and tiny models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from environments import add_tiny_pack
from host import Server, Unavailable, serve, workers


@pytest.fixture(scope="session", params=workers.versions())
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
        with serve(base, version, arguments=pages, environment={"MAGPOLICY_HOME": str(base / "home")}, front_end=True) as up:
            yield up
    except Unavailable as error:
        pytest.skip(str(error))
