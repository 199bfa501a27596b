"""The user's own calibrations and presets: a folder, listed with those that ship."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs

from magpolicy import _checks
from magpolicy._errors import MagPolicyError, PresetError, PresetWarning, printable
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._format import save
from magpolicy.catalog._file import load_preset
from magpolicy.catalog._identity import digest
from magpolicy.catalog._presets import Preset
from magpolicy.files._names import JSON, PRESET_ENDINGS, ending_of, file_name

HOME = "MAGPOLICY_HOME"
_ATTEMPTS = 100


def library() -> Path:
    """The folder: ``$MAGPOLICY_HOME``, else ``magpolicy`` where the system keeps a user's data.

    That is ``~/.local/share`` on Linux (or ``$XDG_DATA_HOME``), ``~/Library/Application Support`` on macOS and
    ``%LOCALAPPDATA%`` on Windows. If the folder for Linux exists, it is used on every system.

    Raises:
        PresetError: nothing says where the user's home is.
    """
    if home := os.environ.get(HOME):
        return Path(home)
    try:
        folder = platformdirs.user_data_path("magpolicy", appauthor=False)
        before = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "magpolicy"
    except (RuntimeError, KeyError) as error:  # no HOME, and no entry in passwd
        raise PresetError(f"the user's home is not known ({error}); set {HOME} to a folder for calibrations") from error
    return before if before.is_dir() and not folder.is_dir() else folder


def keep(calibration: Calibration, *, ending: str = JSON) -> Path:
    """Save a named calibration into the folder :func:`library`, and return the file. :func:`preset` then takes its names.

    ``handle.calibration`` has a name that tells the model; :func:`attrs.evolve` gives another one. Keeping one of the same name
    again replaces it. No other file is overwritten, whatever the name.

    Raises:
        PresetError: it has no name, or the file cannot be written.
    """
    return keep_in(library(), calibration, ending=ending)


def keep_in(folder: Path, calibration: Calibration, *, ending: str = JSON) -> Path:
    """As :func:`keep`, into another folder."""
    _checks.instance("calibration", calibration, Calibration, "a Calibration; try load_calibration(path)")
    if not calibration.name:
        raise PresetError("name='' must be a text of at least one character; try attrs.evolve(calibration, name='my-model')")

    def of_its_name() -> list[Path]:
        return [file for file, preset in _in(folder) if preset.name == calibration.name and preset.calibration is not None]

    return put_in(folder, calibration.name, ending, of_its_name, lambda file, new: save(calibration, file, new=new))


def put_in(folder: Path, name: str, ending: str, find: Callable[[], list[Path]], write: Callable[[Path, bool], None]) -> Path:
    """Write a file for something of that name, whoever else writes there, and return it.

    Args:
        folder: where, made if there is none.
        name: what it becomes the file's name of.
        ending: of the file.
        find: the files that hold what has that name already; one of that ending is written over, the others are removed.
        write: writes the file given; told ``True``, only if there is none, else it raises a :class:`FileExistsError`.

    Raises:
        PresetError: it cannot be written.
    """
    made(folder)
    for _ in range(_ATTEMPTS):
        free = free_file(folder, name, ending)  # before the look, which then finds whatever took a name before this one
        before = find()
        its_own = next((file for file in before if ending_of(file) == ending), None)
        file = its_own or free
        with contextlib.suppress(FileExistsError):  # another writer was quicker
            write(file, its_own is None)
            for other in before:
                if other != file:
                    other.unlink(missing_ok=True)
            if os.path.lexists(file):  # one that writes the same with another ending may have removed it
                return file
    raise PresetError(f"name={name!r} cannot be kept in {folder}: others write to it all the time; try again")


def made(folder: Path) -> Path:
    """``folder``, which there is from now on.

    Raises:
        PresetError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PresetError(f"{folder} cannot be made: {error}; set {HOME} to a folder you can write to") from error
    return folder


def free_file(folder: Path, name: str, ending: str) -> Path:
    """A file that there is not yet, for something of that name.

    The first of several names that become the same file's name has it; the others get a few digits that tell them apart.
    """
    plain, told_apart = file_name(name), f"{file_name(name)}-{digest(name)[:8]}"
    stems = [plain, told_apart, *(f"{told_apart}-{number}" for number in range(2, 1000))]
    return next(file for stem in stems if not os.path.lexists(file := folder / f"{stem}{ending}"))


def own() -> dict[str, Preset]:
    """Presets and calibrations in the folder, by name; a file that cannot be read is left out with a warning."""
    return {preset.name: preset for preset in every_own()}


def every_own() -> list[Preset]:
    """The same, also where several have one name."""
    try:
        return presets_in(library())
    except PresetError:  # there is no folder to look into
        return []


def presets_in(folder: Path, begins: str = "") -> list[Preset]:
    """Presets and calibrations in a folder's files whose names begin so; one that cannot be read is left out with a warning."""
    return [preset for _, preset in _in(folder, begins)]


def _in(folder: Path, begins: str = "") -> list[tuple[Path, Preset]]:
    found = []
    for file in (file for file in files_in(folder) if file.name.startswith(begins)):
        content = read(file)
        if isinstance(content, Preset):
            found.append((file, content))
        else:
            _tell(content)
    return found


def files_in(folder: Path) -> list[Path]:
    """The files in a folder that may hold presets, in the order of their names."""
    try:
        return sorted(f for f in folder.iterdir() if ending_of(f) in PRESET_ENDINGS and not f.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):  # most have no such folder
        return []
    except OSError as error:
        _tell(f"{folder} cannot be read: {error}")
        return []


def read(file: Path) -> Preset | str:
    """The preset in a file, or why it cannot be read. A file that did not change is read once."""
    try:
        known = file.stat()
    except (OSError, ValueError) as error:  # a link that leads nowhere, or a file that was removed just now
        return f"{file} cannot be read: {error}"
    return _read(file, known.st_mtime_ns, known.st_size)


@functools.lru_cache(maxsize=512)
def _read(file: Path, *_: int) -> Preset | str:
    try:
        return load_preset(file)
    except MagPolicyError as error:
        return str(error)
    except Exception as error:  # whatever a file may hold, the others are to be found
        return f"{file} cannot be read: {type(error).__name__}: {error}"


@functools.lru_cache(maxsize=512)  # each once
def _tell(problem: str) -> None:
    warnings.warn(f"{printable(problem)}; left out of the presets", PresetWarning, stacklevel=5)
