"""The version. pyproject.toml states it, because ComfyUI and its registry of node packs read it there."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

_STATED = re.compile(r'^name = "magpolicy"\nversion = "([^"]+)"$', re.MULTILINE)


def _version() -> str:
    project = Path(__file__).parents[2] / "pyproject.toml"
    # Sources in their repository: a clone, or an editable install, whose metadata may be of another day.
    if project.is_file() and (stated := _STATED.search(project.read_text(encoding="utf-8"))):
        return stated[1]
    try:
        return importlib.metadata.version("magpolicy")
    except importlib.metadata.PackageNotFoundError:  # the sources alone, copied somewhere
        return "0+unknown"


__version__ = _version()
