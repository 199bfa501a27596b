"""Fetching SGLang: of its wheel the Python code, which is what a CPU can run."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fetching import install, kept, wheel

VERSION = "0.5.23"
_SHA256 = (
    "00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937",  # for Python 3.11
    "8d257a319395b322bb1be327d05e5528859358153c8563b04c0a4a3c8af164b6",  # for Python 3.12
    "10f0b2b29c8fea616e4b27cbbbb147f32a879bf3db71c9767425a3d9d77a36cb",  # for Python 3.13
)
# What it imports that the tests of this repository do not need otherwise: without it SGLang cannot be imported.
_LIBRARIES = (
    "addict==2.4.0",
    "apache-tvm-ffi==0.1.15.post2",
    "compressed-tensors==0.20.1",
    "dill==0.4.1",
    "gguf==0.19.0",
    "loguru==0.7.3",
    "msgspec==0.22.0",
    "openai==3.57.0",
    "orjson==3.13.0",
    "partial-json-parser==0.2.1.1.post7",
    "pybase64==1.5.1",
    "pyzmq==27.3.0",
    "setproctitle==1.3.8",
    "sniffio==1.3.1",
    "starlette==1.10.0",
    "uvicorn==0.54.0",
)
_SMALL = 300_000
"""Larger files of the wheel are compiled code, and tables for GPUs."""


def obtain() -> Path:
    """The folder to put on ``sys.path``; fetched on the first call.

    Raises:
        Unavailable: it is not there and cannot be fetched (no network, another platform).
    """
    return kept(f"sglang-{VERSION}", _make)


def _make(scratch: Path, made: Path) -> None:
    found = wheel(scratch, f"sglang=={VERSION}", *_SHA256)
    with zipfile.ZipFile(found) as archive:
        archive.extractall(made, [each for each in archive.infolist() if each.compress_size < _SMALL])
    found.unlink()
    install(made, _LIBRARIES, f"sglang {VERSION}")
