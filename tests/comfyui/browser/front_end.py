"""ComfyUI's front end, which is a package of its own."""

from __future__ import annotations

import os
import re
import zipfile
from functools import partial
from pathlib import Path

from fetching import kept, wheel
from host import obtain

CHOICE = "MAGPOLICY_FRONT_END"
"""Environment variable: the release of the front end to test with, in place of the one that ComfyUI asks for."""
_INSIDE = "comfyui_frontend_package/static/"


def front_end(version: str) -> Path:
    """The folder with the pages that this ComfyUI asks for in its requirements, or of the release that the user chose; fetched
    on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched.
    """
    requirements = (obtain(version) / "requirements.txt").read_text()
    found = re.search(r"^comfyui-frontend-package==(\S+)$", requirements, re.MULTILINE)
    assert found, requirements
    release = os.environ.get(CHOICE) or found[1]
    return kept(f"comfyui-front-end-{release}", partial(_make, release))


def _make(release: str, scratch: Path, made: Path) -> None:
    with zipfile.ZipFile(wheel(scratch, f"comfyui-frontend-package=={release}")) as archive:
        # Source maps are half of it, and only for debuggers.
        archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(_INSIDE) and not n.endswith(".map")])
    (scratch / _INSIDE).rename(made)
