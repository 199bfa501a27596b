"""Fetching vLLM-Omni and, of vLLM, the Python code: of its wheel for GPUs that is what a CPU can run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.30.0"
_OMNI_SHA256 = "141cb0c7b9c07970e5c92a99aab9696e81682dbfa3d2bfcde359c3c1533385f4"
_VLLM_SHA256 = "ef52ee58c410ead0b8afb190838fa4cbcb52075596f67862a03859d984966ac4"
# What both import that the tests of this repository do not need otherwise: without it vLLM cannot be imported.
_LIBRARIES = (
    "aenum==3.1.16",
    "apache-tvm-ffi==0.1.15.post2",
    "blake3==1.0.11",
    "cachetools==8.0.2",
    "cbor2==6.3.0",
    "cloudpickle==3.1.3",
    "einops==0.8.2",
    "fastapi==0.165.0",
    "ijson==3.6.0",
    "janus==2.0.0",
    "llguidance==1.9.1",
    "loguru==0.7.3",
    "msgpack==1.2.4",
    "msgspec==0.22.0",
    "omegaconf==2.4.0",
    "openai==3.57.0",
    "openai-harmony==0.0.8",
    "partial-json-parser==0.2.1.1.post7",
    "prettytable==3.18.0",
    "prometheus-client==0.26.0",
    "py-cpuinfo==9.0.0",
    "pybase64==1.5.1",
    "pyzmq==27.3.0",
    "setproctitle==1.3.8",
    "sniffio==1.3.1",
    "starlette==1.10.0",
    "tiktoken==0.14.0",
    "uvloop==0.23.0",
    "xgrammar==0.2.9",
)
_SMALL = 300_000
"""Larger files of the wheel are compiled code, and tables for GPUs."""


class Unavailable(Exception):
    """No vLLM-Omni here, and none could be fetched."""


def cache_folder() -> Path:
    """Where it is kept: ``$MAGPOLICY_TEST_CACHE``, or ``magpolicy-tests`` in the user's cache folder."""
    chosen = os.environ.get("MAGPOLICY_TEST_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magpolicy-tests"


def obtain() -> Path:
    """The folder to put on ``sys.path``; fetched on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network, another platform).
    """
    target = cache_folder() / f"vllm-omni-{VERSION}"
    if target.exists():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        made = Path(scratch) / "made"
        _omni(Path(scratch), made)
        _vllm(Path(scratch), made)
        _pip("install", "--no-deps", "--only-binary", ":all:", "--target", str(made), *_LIBRARIES)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not target.exists():
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
    return target


def _omni(scratch: Path, made: Path) -> None:
    with zipfile.ZipFile(_wheel(scratch, f"vllm-omni=={VERSION}", _OMNI_SHA256)) as archive:
        archive.extractall(made)


def _vllm(scratch: Path, made: Path) -> None:
    wheel = _wheel(scratch, f"vllm=={VERSION}", _VLLM_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith((".py", ".json", ".jinja"))]
        archive.extractall(made, [name for name in names if archive.getinfo(name).compress_size < _SMALL])
    wheel.unlink()
    about = made / f"vllm-{VERSION}+cpu.dist-info"  # the name of its build for CPUs, by which it knows its platform
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _wheel(scratch: Path, wanted: str, sha256: str) -> Path:
    folder = scratch / wanted
    folder.mkdir()
    (folder / "wanted.txt").write_text(f"{wanted} --hash=sha256:{sha256}\n")
    options = ("--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--require-hashes")
    _pip("download", *options, "--dest", str(folder), "-r", str(folder / "wanted.txt"))
    return next(folder.glob("*.whl"))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"vllm-omni {VERSION} cannot be fetched: nothing came for a quarter of an hour") from error
    if done.returncode:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"vllm-omni {VERSION} cannot be fetched: {last}")
