"""Where ComfyUI runs in tests: Python environments without magpolicy, and base folders with the pack of tiny models."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

HOST_PATHS = [str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1] / "common")]
"""What ``sys.path`` needs for ``import host``, in a process of its own."""


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


def add_tiny_pack(base: Path) -> None:
    """Put the node pack `tiny_pack` into the custom_nodes of ``base``."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    text = f"import sys\nsys.path.extend({HOST_PATHS!r})\nfrom tiny_pack import NODE_CLASS_MAPPINGS\n"
    (base / "custom_nodes" / "tiny.py").write_text(text)
