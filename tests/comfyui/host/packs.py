"""Node packs of other people, from a folder of yours that holds them by their names: ``MAGPOLICY_COMFYUI_PACKS=/path``."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

CHOICE = "MAGPOLICY_COMFYUI_PACKS"


def pack(name: str, *, faked: tuple[str, ...] = ()) -> Any:
    """The pack's module; the test is skipped where it is not there, or cannot be imported with what is installed here.

    What is faked: ComfyUI's server, to which packs add routes when they are imported, and the libraries ``faked`` where they
    are not installed.
    """
    chosen = os.environ.get(CHOICE)
    if not chosen:
        pytest.skip(f"{CHOICE} names no folder with node packs")
    folder = Path(chosen) / name
    if not (folder / "__init__.py").is_file():
        pytest.skip(f"{name} is not in {chosen}")
    module = f"pack_{name.replace('-', '_')}"
    if module in sys.modules:
        return sys.modules[module]
    _own_utils()
    import server

    if not hasattr(server.PromptServer, "instance"):
        server.PromptServer.instance = MagicMock(name="PromptServer")
        server.PromptServer.instance.prompt_queue = None
    spec = importlib.util.spec_from_file_location(module, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[module] = made = importlib.util.module_from_spec(spec)
    _fake(faked)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            _own_nodes()
            spec.loader.exec_module(made)
    except Exception as error:
        del sys.modules[module]
        pytest.skip(f"{name} cannot be imported here: {type(error).__name__}: {error}")
    import nodes

    nodes.NODE_CLASS_MAPPINGS.update(getattr(made, "NODE_CLASS_MAPPINGS", {}))  # where other packs look for them
    return made


@contextlib.contextmanager
def put_back(*places: Any) -> Iterator[None]:
    """What a pack replaces in modules or classes of ComfyUI is put back at the end."""
    before = [(place, dict(vars(place))) for place in places]
    try:
        yield
    finally:
        for place, kept in before:
            for name, value in list(vars(place).items()):
                if name not in kept:
                    delattr(place, name)
                elif kept[name] is not value and not name.startswith("__"):
                    setattr(place, name, kept[name])


def _fake(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock(name=name)


def _own_utils() -> None:
    """ComfyUI's package ``utils``, which its ``main.py`` imports before ``nodes`` puts the folder ``comfy`` with a module of
    that name before it."""
    import nodes

    if not hasattr(sys.modules.get("utils"), "__path__"):
        sys.modules.pop("utils", None)
        sys.path.insert(0, str(Path(nodes.__file__).parent))
        importlib.import_module("utils.install_util")


def _own_nodes() -> None:
    """ComfyUI's own nodes of ``comfy_extras``, which it loads before any pack."""
    import nodes

    if "TripleCLIPLoader" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
