"""Writes the locks: ``python tools/lock.py``. Each pins every package, with the hashes of its files, as constraints.txt does.

| lock | what it installs |
|---|---|
| ``core.txt`` | ``.[cli,plot,test]`` on Python 3.10 and newer, and what builds the package |
| ``release.txt`` | what makes a release and lints the workflows |
| ``comfyui-registry.txt`` | what publishes the node pack; it is no extra, because nobody else needs it |
| ``full.txt`` | ``.[all,dev]`` but torch, whose build is the machine's: install that first, in the version of constraints.txt |

An index's address is written nowhere, so that a lock serves a mirror as well. To use one: ``pip install --require-hashes -r
locks/core.txt``, and then the package itself with ``--no-deps --no-build-isolation``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "locks"
HEAD = "# Written by: python tools/lock.py. What each lock is for stands there.\n"
LOCKS = {"core": (("cli", "plot", "test"), "3.10"), "release": (("release",), "3.11"), "full": (("all", "dev"), "3.11")}
REGISTRY = "comfyui-registry"
OF_TORCHS_BUILD = re.compile(r"^(torch|triton|nvidia|cuda)([-=].*)?$")


def compiled(sources: tuple[str, ...], python: str, leave_out: tuple[str, ...] = ()) -> str:
    """The lock of these sources for this Python and newer ones, without the packages to be left out."""
    options = ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--python-version", python]
    options += [word for name in leave_out for word in ("--no-emit-package", name)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "-c", "constraints.txt", *sources]
    return subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def lock(name: str) -> str:
    """The text of the lock of that name."""
    if name == REGISTRY:
        return HEAD + compiled((f"locks/{REGISTRY}.in",), "3.13")
    extras, python = LOCKS[name]
    sources = ("pyproject.toml", "locks/build.in", *(word for extra in extras for word in ("--extra", extra)))
    text = compiled(sources, python)
    left_out = tuple(package for package in re.findall(r"^([\w.-]+)==", text, re.MULTILINE) if OF_TORCHS_BUILD.match(package))
    return HEAD + (compiled(sources, python, left_out) if left_out else text)


if __name__ == "__main__":
    for name in (*LOCKS, REGISTRY):
        (FOLDER / f"{name}.txt").write_text(lock(name), encoding="utf-8")
        print(f"locks/{name}.txt")
