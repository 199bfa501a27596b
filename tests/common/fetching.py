"""Fetching a host to test with, without its dependencies, into a folder that is kept outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


class Unavailable(Exception):
    """It is not here, and could not be fetched."""


def cache_folder() -> Path:
    """Where hosts are kept: ``$MAGPOLICY_TEST_CACHE``, or ``magpolicy-tests`` in the user's cache folder."""
    chosen = os.environ.get("MAGPOLICY_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magpolicy-tests"


def kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    """The folder of that name; made on the first call, by ``make(scratch, made)``.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network, another platform).
    """
    target = cache_folder() / name
    if target.exists():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        made = Path(scratch) / "made"
        make(Path(scratch), made)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not target.exists():
                raise
    return target


def wheel(scratch: Path, wanted: str, *sha256: str) -> Path:
    """The wheel of a requirement, which has one of these digests, if there are any: one for each version of Python.

    Raises:
        Unavailable: it cannot be fetched.
    """
    folder = scratch / wanted
    folder.mkdir()
    hashes = "".join(f" --hash=sha256:{each}" for each in sha256)
    (folder / "wanted.txt").write_text(f"{wanted}{hashes}\n")
    options = ("--no-deps", "--only-binary", ":all:", "--no-cache-dir", *(("--require-hashes",) if sha256 else ()))
    _pip(wanted, "download", *options, "--dest", str(folder), "-r", str(folder / "wanted.txt"))
    return next(folder.glob("*.whl"))


def install(made: Path, libraries: Sequence[str], what: str) -> None:
    """Install libraries into a folder, without their dependencies.

    Raises:
        Unavailable: they cannot be fetched.
    """
    _pip(what, "install", "--no-deps", "--only-binary", ":all:", "--target", str(made), *libraries)


def _pip(what: str, command: str, *arguments: str) -> None:
    called = [sys.executable, "-m", "pip", command, "--quiet", *arguments]
    try:
        done = subprocess.run(called, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{what} cannot be fetched: nothing came for a quarter of an hour") from error
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"{what} cannot be fetched: {last}")
