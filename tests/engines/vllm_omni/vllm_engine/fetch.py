"""Fetching vLLM-Omni and, of vLLM, the Python code: of its wheel for GPUs that is what a CPU can run."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fetching import install, kept, wheel

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


def obtain() -> Path:
    """The folder to put on ``sys.path``; fetched on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network, another platform).
    """
    return kept(f"vllm-omni-{VERSION}", _make)


def _make(scratch: Path, made: Path) -> None:
    _omni(scratch, made)
    _vllm(scratch, made)
    install(made, _LIBRARIES, f"vllm-omni {VERSION}")


def _omni(scratch: Path, made: Path) -> None:
    with zipfile.ZipFile(wheel(scratch, f"vllm-omni=={VERSION}", _OMNI_SHA256)) as archive:
        archive.extractall(made)


def _vllm(scratch: Path, made: Path) -> None:
    found = wheel(scratch, f"vllm=={VERSION}", _VLLM_SHA256)
    with zipfile.ZipFile(found) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and name.endswith((".py", ".json", ".jinja"))]
        archive.extractall(made, [name for name in names if archive.getinfo(name).compress_size < _SMALL])
    found.unlink()
    about = made / f"vllm-{VERSION}+cpu.dist-info"  # the name of its build for CPUs, by which it knows its platform
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
