"""The user's files: how their names end, and how a name becomes one."""

from __future__ import annotations

import os
import re
from pathlib import Path

JSON, TOML, SAFETENSORS = ".json", ".toml", ".safetensors"
CALIBRATION_ENDINGS = (JSON, SAFETENSORS)
PRESET_ENDINGS = (JSON, TOML, SAFETENSORS)
"""A calibration is a preset too, so these are the endings of everything that can be named where a preset is asked for."""

MAX_NAME = 100
"""Bytes of a name that a file's name keeps; file systems take 255, with what we add to it."""
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\xb9\xb2\xb3])(\..*)?", re.IGNORECASE)


def ending_of(path: str | os.PathLike[str]) -> str:
    """How a path ends, in lower case, with the dot."""
    return Path(path).suffix.lower()


def names_a_file(text: str) -> bool:
    """Whether a text is the path of a preset's file, and not a preset's name."""
    return text.lower().endswith(PRESET_ENDINGS)


def file_name(name: str) -> str:
    """``name`` as a file's name without ending: letters, digits and ``._+-`` stay, all else becomes a dash.

    Every system takes it: it is short, and none of the names that Windows reserves. Several names may give the same.
    """
    found = re.sub(r"[^\w.+-]+", "-", name).encode("utf-8", "ignore")[:MAX_NAME].decode("utf-8", "ignore").strip("-.")
    return f"_{found}" if reserved(found) else found or "calibration"


def reserved(name: str) -> bool:
    """Whether Windows keeps a file's name for itself."""
    return _RESERVED.fullmatch(name) is not None
