"""What each extra brings to a user: a bill of materials (CycloneDX) and a list of licences, by the tools made for them.

``python tools/bill_of_materials.py dist/magpolicy-0.1.0-py3-none-any.whl FOLDER [EXTRA ...]`` installs the wheel with each
extra into an environment of its own, with the pinned versions, and writes ``EXTRA.cdx.json`` and ``EXTRA.licences.md`` into the
folder. Without names it does so for the bare package and for every extra that a user installs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BARE = "magpolicy"
EXTRAS = ("torch", "diffusers", "comfyui", "vllm-omni", "sglang", "files", "cli", "plot", "metrics", "demo")
"""Those of a user's but `evaluate`, whose torchvision has to fit the build of torch, and `all`, which is these together."""


def describe(python: Path, name: str, folder: Path) -> None:
    """Write both lists of the environment of ``python`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    bill, licences = folder / f"{name}.cdx.json", folder / f"{name}.licences.md"
    _run("cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", "-o", bill, python)
    columns = ("--with-urls", "--order", "license", "--format", "markdown")
    _run("piplicenses", "--python", python, *columns, "--output-file", licences)


def install(wheel: Path, extra: str, folder: Path) -> Path:
    """An environment in ``folder`` with the wheel and an extra; returns its interpreter."""
    what = str(wheel.resolve()) + (f"[{extra}]" if extra != BARE else "")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    _run("uv", "venv", "--quiet", folder)
    _run("uv", "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", what)
    return python


def _run(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write bills of materials and lists of licences, for each extra.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("extras", nargs="*", help="extras; all that users install by default")
    given = parser.parse_args()
    for extra in given.extras or (BARE, *EXTRAS):
        with tempfile.TemporaryDirectory(prefix="magpolicy-extra-") as scratch:
            describe(install(given.wheel, extra, Path(scratch) / "venv"), extra, given.folder)
        print(f"{given.folder / extra}: bill of materials and licences")


if __name__ == "__main__":
    main()
