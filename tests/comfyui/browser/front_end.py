"""ComfyUI's front end, which is a package of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from host import Unavailable, cache_folder, obtain

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
    target = cache_folder() / f"comfyui-front-end-{release}"
    if not (target / "index.html").exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            unpacked = _fetch(release, Path(scratch))
            unpacked.rename(target)
    return target


def _fetch(release: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    done = subprocess.run(
        [*command, f"comfyui-frontend-package=={release}"], capture_output=True, text=True, timeout=300, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"comfyui-frontend-package {release} cannot be fetched: {last}")
    with zipfile.ZipFile(wheels[0]) as archive:  # source maps are half of it, and only for debuggers
        archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(_INSIDE) and not n.endswith(".map")])
    return scratch / _INSIDE
