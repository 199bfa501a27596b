"""One server per ComfyUI version for all tests here: the nodes put in by `magpolicy comfyui install`, and tiny models."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator

import pytest
from environments import add_tiny_pack
from host import Server, Unavailable, serve, workers


@pytest.fixture(scope="session", params=workers.versions())
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Starts the server of a version once; all end with the tests. A fixture of each version's own would end with each file."""
    pytest.importorskip("torch")
    from browser import front_end

    from magpolicy_comfyui import _install

    @functools.cache
    def get(version: str) -> Server:
        base = tmp_path_factory.mktemp(f"comfyui-{version}")
        add_tiny_pack(base)
        _install.install(base)
        pages = ("--front-end-root", str(front_end(version)))
        home = {"MAGPOLICY_HOME": str(base / "home")}
        return up.enter_context(serve(base, version, arguments=pages, environment=home, front_end=True))

    with contextlib.ExitStack() as up:
        yield get


@pytest.fixture(scope="session")
def server(servers: Callable[[str], Server], version: str) -> Server:
    try:
        return servers(version)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def unlearned(server: Server) -> Server:
    """The server, without what runs of other tests taught, and what they measured."""
    for folder in ("home", "models/magpolicy"):
        shutil.rmtree(server.base / folder, ignore_errors=True)
    return server
