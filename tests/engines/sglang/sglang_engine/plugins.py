"""The engine's start with plugins: its own loader finds the entry point of magpolicy, and its registry applies the hooks."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import tomllib

import magpolicy

_GROUP = "sglang.multimodal_gen.plugins"
_PROJECT = Path(__file__).parents[4] / "pyproject.toml"


def started(server: Any = None) -> None:
    """Start as a worker of the engine does, up to where it loads models; ``server``: settings of the server."""
    from sglang.multimodal_gen.runtime.platforms import plugins

    os.environ["MAGPOLICY_SGLANG"] = server if isinstance(server, str) else "" if server is None else json.dumps(server)
    _installed()
    plugins.load_plugins()
    plugins.apply_plugin_hooks()


def patched() -> list[str]:
    """Which methods of the engine are patched."""
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry

    return sorted(target.rpartition(".")[2] for target in HookRegistry._patched)


def pretend(version: str | None) -> None:
    """Give the engine another version."""
    if version is not None:
        from magpolicy_sglang import _engine

        _engine.version = lambda name: version


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the adapter says meanwhile."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                lines.append(record.getMessage())

    handler, logger = Lines(), logging.getLogger("sglang.magpolicy")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _installed() -> None:
    """Magpolicy as it is installed from this repository, if it was installed before it had the entry points."""
    from magpolicy_sglang import _plugin

    if not magpolicy.manager().is_registered(_plugin):
        magpolicy.manager().register(_plugin)
    if any(point.name == "magpolicy" for point in metadata.entry_points(group=_GROUP)):
        return
    points = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][_GROUP]
    about = Path(os.environ["MAGPOLICY_HOME"]) / "site" / "magpolicy_sglang_points-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: magpolicy-sglang-points\nVersion: 1\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[{_GROUP}]\n{lines}")
    sys.path.append(str(about.parent))
