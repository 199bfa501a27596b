"""Reading files that anybody may have made: bounded in size, nesting and digits, so that none costs more than itself."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

from magpolicy import _checks
from magpolicy._errors import require

MAX_NESTING = 16
"""Lists and tables within one another; a calibration's file has six."""
_TOO_DEEP = f"it is nested too deep, more than {MAX_NESTING} lists and tables within one another"
MAX_DIGITS = 40
"""Of a whole number; the largest that means something here has six."""
MAX_TOML = 400_000
"""Bytes of a TOML file; the largest published table takes 12 kB. Reading takes ten times as long as JSON's."""
_PART = r"(?:[\w-]+|\"[^\"\n]*\"|'[^'\n]*')"
_DOTTED = re.compile(rf"(?<![\w\"'-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MAX_NESTING}}}")
"""A key of that many parts; the time to read one grows with the square of their number."""


class TooLarge(ValueError):
    """A file has more bytes than what is asked for can have."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size} bytes")
        self.size = size


def bytes_of(file: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes. What is opened is what is looked at, and it never blocks.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device, whose end may never come.
        TooLarge: it has more bytes, or grew while it was read.
        ValueError: there can be no such path.
    """
    size_of(os.stat(file), most)  # first: opening a device may already do something
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(opened, "rb") as stream:
        size_of(os.fstat(opened), most)
        content = stream.read(most + 1)
    if len(content) > most:
        raise TooLarge(len(content))
    return content


def size_of(known: os.stat_result, most: float = float("inf")) -> int:
    """Bytes of a file that can be read to its end, from what the system says of it.

    Raises:
        OSError: it cannot.
        TooLarge: it has more bytes than ``most``.
    """
    if not stat.S_ISREG(known.st_mode):
        raise OSError(f"it is no regular file, but a {'folder' if stat.S_ISDIR(known.st_mode) else 'pipe or device'}")
    if known.st_size > most:
        raise TooLarge(known.st_size)
    return known.st_size


def json_of(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, or is nested too deep, or holds a number of too many digits; in words.
    """
    try:
        found = json.loads(_text(content), parse_int=_whole)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return _flat_enough(found)


def toml_of(content: bytes) -> Any:
    """What TOML says.

    Raises:
        ValueError: as :func:`json_of`.
        MissingExtraError: on Python 3.10 it needs the ``files`` extra.
    """
    if len(content) > MAX_TOML:
        raise ValueError(f"it has {len(content)} bytes, at most {MAX_TOML} are read as TOML; write it as JSON")
    text = _text(content)
    if deep := _DOTTED.search(text):
        raise ValueError(f"the key {_checks._short(deep[0])} is nested too deep")
    library = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "files")
    try:
        found = library.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return _flat_enough(found)


def _text(content: bytes | str) -> str:
    try:
        return content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save it as UTF-8") from None


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:12]}... has {len(digits)} digits, too many to mean anything")
    return int(digits)


def _flat_enough(found: Any) -> Any:
    level = [found]
    for _ in range(MAX_NESTING):
        level = [inner for outer in level for inner in _inner(outer) if isinstance(inner, dict | list)]
        if not level:
            return found
    raise ValueError(_TOO_DEEP)


def _inner(outer: Any) -> Any:
    if isinstance(outer, dict):
        return outer.values()
    return outer if isinstance(outer, list) else ()
