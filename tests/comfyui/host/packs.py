"""Node packs of other people, from a folder of yours that holds them by their names: ``MAGPOLICY_COMFYUI_PACKS=/path``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

CHOICE = "MAGPOLICY_COMFYUI_PACKS"


def pack(name: str) -> Any:
    """The pack's module; the test is skipped where it is not there, or cannot be imported with what is installed here.

    What is faked: ComfyUI's server, to which packs add routes when they are imported.
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
    try:
        import server
    except ImportError as error:  # of ComfyUI's own module utils, where another one is in its place
        pytest.skip(f"ComfyUI's server cannot be imported here: {error}")
    if not hasattr(server.PromptServer, "instance"):
        server.PromptServer.instance = MagicMock(name="PromptServer")
        server.PromptServer.instance.prompt_queue = None
    spec = importlib.util.spec_from_file_location(module, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[module] = made = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            spec.loader.exec_module(made)
    except Exception as error:
        del sys.modules[module]
        pytest.skip(f"{name} cannot be imported here: {type(error).__name__}: {error}")
    return made
