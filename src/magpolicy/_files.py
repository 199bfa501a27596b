"""The user's files: how their names end, how a name becomes one, and how a file is written whole."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from magpolicy._errors import PresetError

JSON, TOML, SAFETENSORS = ".json", ".toml", ".safetensors"
CALIBRATION_ENDINGS = (JSON, SAFETENSORS)
PRESET_ENDINGS = (JSON, TOML, SAFETENSORS)
"""A calibration is a preset too, so these are the endings of everything that can be named where a preset is asked for."""

MAX_NAME = 100
"""Bytes of a name that a file's name keeps; file systems take 255, with what we add to it."""
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\xb9\xb2\xb3])(\..*)?", re.IGNORECASE)


def ending_of(path: str | os.PathLike[str]) -> str:
    """How a path ends, in lower case, with the dot."""
    return Path(path).suffix.lower()


def names_a_file(text: str) -> bool:
    """Whether a text is the path of a preset's file, and not a preset's name."""
    return text.lower().endswith(PRESET_ENDINGS)


def file_name(name: str) -> str:
    """``name`` as a file's name without ending: letters, digits and ``._+-`` stay, all else becomes a dash.

    Every system takes it: it is short, and none of the names that Windows reserves. Several names may give the same.
    """
    found = re.sub(r"[^\w.+-]+", "-", name).encode("utf-8", "ignore")[:MAX_NAME].decode("utf-8", "ignore").strip("-.")
    return f"_{found}" if _RESERVED.fullmatch(found) else found or "calibration"


def size_of(file: Path) -> int:
    """Bytes of a file that can be read to its end.

    Raises:
        OSError: it cannot be read, or is a pipe or device, whose end may never come.
        ValueError: there can be no such path.
    """
    known = file.stat()
    if not stat.S_ISREG(known.st_mode):
        raise OSError(f"it is no regular file, but a {'folder' if stat.S_ISDIR(known.st_mode) else 'pipe or device'}")
    return known.st_size


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        PresetError: it cannot be written.
    """
    import tempfile  # late: it brings the compression of archives along, and few write files

    handle, part = None, ""
    try:
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise PresetError(f"{file} cannot be written: {error}; give a path in a folder you can write to") from error
    except BaseException:  # Ctrl-C too: nothing half-written stays
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
