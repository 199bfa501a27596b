"""Taking a file into the user's library, and giving one out."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from magpolicy._errors import PresetError
from magpolicy.catalog._entries import LibraryEntry, entries
from magpolicy.catalog._file import load_preset, save_preset
from magpolicy.catalog._folder import free_file, keep, library, made
from magpolicy.files._names import CALIBRATION_ENDINGS, JSON, ending_of, file_name


def take_in(path: Path, name: str = "", *, replace: bool = False) -> Path:
    """Put a calibration's or a preset's file into the library, and return the file there.

    Args:
        path: the file; any that :func:`magpolicy.load_preset` reads.
        name: the name to keep it under; by default its own, or else that of the file.
        replace: whether it may take the place of one of the same name.

    Raises:
        PresetError: it cannot be read or written, or its name is taken.
    """
    found = load_preset(path)
    name = name or found.name
    taken = _of_that_name(name, found.calibration is not None)
    if taken is not None and not replace:
        raise PresetError(f"name={name!r} is in the library, as {taken.file.name}; give it another, name=..., or replace that")
    if found.calibration is not None:
        return keep(evolve(found.calibration, name=name))
    file = taken.file if taken is not None and ending_of(taken.file) == JSON else free_file(made(library()), name, JSON)
    save_preset(evolve(found, name=name), file)
    if taken is not None and taken.file != file:
        taken.file.unlink(missing_ok=True)
    return file


def give_out(one: LibraryEntry, path: Path) -> Path:
    """Write what an entry holds to a file, and return it.

    Args:
        path: a ``.json`` file, for a calibration also a ``.safetensors`` file; or a folder that there is.

    Raises:
        PresetError: the entry cannot be read, or the file cannot be written.
    """
    if one.preset is None:
        raise PresetError(one.problem)
    file = path / f"{file_name(one.name)}{JSON}" if path.is_dir() else path
    calibration = one.preset.calibration
    if calibration is None:
        save_preset(one.preset, file)
    elif ending_of(file) in CALIBRATION_ENDINGS:
        calibration.save(file)
    else:
        raise PresetError(f"{file} must end in {' or '.join(CALIBRATION_ENDINGS)}, or be a folder; try {file.stem}{JSON}")
    return file


def _of_that_name(name: str, calibrated: bool) -> LibraryEntry | None:
    """What the user kept under a name, of the same kind: a table and a calibration may share one."""
    kept = (one for one in entries() if not one.learned and one.preset is not None and one.name == name)
    return next((one for one in kept if one.preset and (one.preset.calibration is not None) is calibrated), None)
