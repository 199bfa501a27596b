"""Writing the user's files: each appears whole or not at all, where a link points, with the permissions it had."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from pathlib import Path

from magpolicy._errors import PresetError
from magpolicy.files._names import reserved
from magpolicy.files._reading import size_of

_PART = ".magpolicy-part"
_LEFT_OVER = 3600.0
"""Seconds after which a part of a file has no writer any more."""


def write_whole(file: Path, content: bytes, *, new: bool = False) -> None:
    """Write a file so that it appears whole or not at all, also when the machine stops.

    The file that a link points to is written, and keeps its permissions; a new one has those that the process gives to any.

    Args:
        file: where; a regular file, or nothing yet.
        content: all of it.
        new: whether only a file that is not there yet is meant.

    Raises:
        PresetError: it cannot be written.
        FileExistsError: ``new``, and it is there.
    """
    try:
        target = Path(os.path.realpath(file))
        mode = _mode_of(target)
        part = target.with_name(f".{secrets.token_hex(8)}{_PART}")
        try:
            _fill(part, content, mode)
            _put(part, target, new)
        finally:  # after Ctrl-C too: nothing half-written stays
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except FileExistsError:
        if new:
            raise
        raise PresetError(f"{file} cannot be written: there is something of that name; give another path") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have that name
        why = getattr(error, "strerror", None) or error  # without the name of the part
        raise PresetError(f"{file} cannot be written: {why}; give a path in a folder you can write to") from error
    _sweep(target.parent)


def writable(file: Path, argument: str = "path") -> None:
    """Whether a file can be written there, as far as can be told before; to be asked before long work.

    Raises:
        PresetError: it cannot; names the argument, its value and the mend.
    """
    shown = f"{argument}={str(file)!r}"
    try:
        target = Path(os.path.realpath(file))
        os.fsencode(target)
        folder = target.parent
        known = folder.is_dir()
        _mode_of(target)
    except (OSError, ValueError) as error:  # a NUL, half a character, too long, a folder of that name
        raise PresetError(f"{shown} cannot be written: {error}; give another path") from error
    if not known:
        raise PresetError(f"{shown} cannot be written: there is no folder {folder}; make it, or give another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PresetError(f"{shown} cannot be written: {folder} is not yours to write to; give another path")
    if os.name == "nt" and reserved(file.name):
        raise PresetError(f"{shown} cannot be written: Windows reserves that name; give another")


def _mode_of(target: Path) -> int | None:
    """The permissions of the file that is there; ``None``: there is none."""
    try:
        known = target.stat()
    except FileNotFoundError:
        return None
    size_of(known)
    return stat.S_IMODE(known.st_mode)


def _fill(part: Path, content: bytes, mode: int | None) -> None:
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(handle)
    if mode is not None:
        part.chmod(mode)


def _put(part: Path, target: Path, new: bool) -> None:
    if not new:
        os.replace(part, target)
        return
    try:
        os.link(part, target)  # fails where there is one: of two writers one is the first
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if target.exists():
            raise FileExistsError(str(target)) from None
        os.replace(part, target)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for one in found:
            if one.name.endswith(_PART) and one.name.startswith("."):
                with contextlib.suppress(OSError):
                    if now - one.stat(follow_symlinks=False).st_mtime > _LEFT_OVER:
                        os.unlink(one.path)
