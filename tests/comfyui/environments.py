"""Python environments for the installing tests: everything that is installed here, less magpolicy and less what a test leaves out."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path


def make_environment(folder: Path, *, without: Iterable[str] = ()) -> Path:
    """A virtual environment whose packages are links to those here; gives its ``python``.

    Args:
        folder: where; must not exist.
        without: top-level names of packages to leave out, beside magpolicy's own.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = next(p for p in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if p.exists())
    target = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    left_out = tuple(without)
    for place in map(Path, sys.path):
        if place.name not in ("site-packages", "dist-packages") or not place.is_dir():
            continue
        for entry in place.iterdir():
            link = target / entry.name
            if _wanted(entry.name, left_out) and not link.exists():
                link.symlink_to(entry)
    return python


def _wanted(name: str, left_out: tuple[str, ...]) -> bool:
    """Neither magpolicy, nor a file that brings it (an editable install is a .pth file)."""
    plain = name.lower().lstrip("_")
    return not (
        name.endswith(".pth")
        or plain.startswith(("magpolicy", "editable__"))
        or name == "__pycache__"
        or any(plain == out or plain.startswith((f"{out}-", f"{out}.")) for out in left_out)
    )


def site_packages(python: Path) -> Path:
    """Where an environment keeps its packages."""
    done = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())
