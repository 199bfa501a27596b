"""The user's own calibrations and presets: a folder, listed with those that ship."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import platformdirs

from magpolicy._errors import MagPolicyError, PresetError, PresetWarning
from magpolicy._files import JSON, PRESET_ENDINGS, ending_of, file_name
from magpolicy.calibration._calibration import Calibration
from magpolicy.catalog._file import load_preset
from magpolicy.catalog._presets import Preset

HOME = "MAGPOLICY_HOME"


def library() -> Path:
    """The folder: ``$MAGPOLICY_HOME``, else ``magpolicy`` where the system keeps a user's data.

    That is ``~/.local/share`` on Linux (or ``$XDG_DATA_HOME``), ``~/Library/Application Support`` on macOS and
    ``%LOCALAPPDATA%`` on Windows. If the folder for Linux exists, it is used on every system.
    """
    if home := os.environ.get(HOME):
        return Path(home)
    folder = platformdirs.user_data_path("magpolicy", appauthor=False)
    before = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "magpolicy"
    return before if before.is_dir() and not folder.is_dir() else folder


def keep(calibration: Calibration, *, ending: str = JSON) -> Path:
    """Save a named calibration into the folder :func:`library`, and return the file. :func:`preset` then takes its names.

    Raises:
        PresetError: it has no name, or the file cannot be written.
    """
    if not calibration.name:
        raise PresetError("name='' must be a text of at least one character; try attrs.evolve(calibration, name='my-model')")
    folder = library()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PresetError(f"{folder} cannot be made: {error}; set {HOME} to a folder you can write to") from error
    file = folder / (file_name(calibration.name) + ending)
    calibration.save(file)
    return file


def own() -> dict[str, Preset]:
    """Presets and calibrations in the folder, by name; a file that cannot be read is left out with a warning."""
    found = (read(file) for file in own_files())
    return {preset.name: preset for preset in found if preset is not None}


def own_files() -> list[Path]:
    """The files in the folder that may hold presets, in the order of their names."""
    try:
        return sorted(f for f in library().iterdir() if ending_of(f) in PRESET_ENDINGS and not f.name.startswith("."))
    except (OSError, PresetError):  # most have no such folder
        return []


def read(file: Path) -> Preset | None:
    """The preset in a file; ``None``, with a warning, if it cannot be read. Unchanged files are read once."""
    try:
        known = file.stat()
    except (OSError, ValueError) as error:  # a link that leads nowhere, or a file that was removed just now
        return _left_out(f"{file} cannot be read: {error}")
    return _read(file, known.st_mtime_ns, known.st_size)


@functools.lru_cache(maxsize=256)
def _read(file: Path, *_: int) -> Preset | None:
    try:
        return load_preset(file)
    except MagPolicyError as error:
        return _left_out(str(error))
    except Exception as error:  # whatever a file may hold, the others are to be found
        return _left_out(f"{file} cannot be read: {type(error).__name__}: {error}")


@functools.lru_cache(maxsize=256)  # told once
def _left_out(problem: str) -> None:
    warnings.warn(f"{problem}; left out of the presets", PresetWarning, stacklevel=5)
