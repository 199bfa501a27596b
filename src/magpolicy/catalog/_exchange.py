"""Taking a file into the user's library, from this machine or from an address, and giving one out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from attrs import evolve

from magpolicy._errors import PresetError
from magpolicy.catalog._contributed import changed
from magpolicy.catalog._entries import LibraryEntry, entries
from magpolicy.catalog._file import as_json, load_preset, save_preset
from magpolicy.catalog._folder import keep, library, put_in
from magpolicy.catalog._presets import Preset
from magpolicy.files._fetching import fetched, is_address
from magpolicy.files._names import CALIBRATION_ENDINGS, JSON, PRESET_ENDINGS, ending_of, file_name
from magpolicy.files._reading import TooLarge
from magpolicy.files._writing import write_whole


def read_from(place: str | Path) -> Preset:
    """What is in a file, or at an https address.

    Raises:
        PresetError: it cannot be read or fetched, or was changed since it was contributed.
    """
    found = _fetched_from(str(place)) if is_address(str(place)) else load_preset(place)
    if found.calibration is not None and (text := changed(found.calibration)):
        raise PresetError(f"{place}: {text}; ask whoever gave it to you")
    return found


def _fetched_from(address: str) -> Preset:
    ending = ending_of(urlsplit(address).path)
    if ending not in PRESET_ENDINGS:
        raise PresetError(
            f"{address} must end in {', '.join(PRESET_ENDINGS)}; give the address of the file itself, not of a page"
        )
    try:
        content = fetched(address)
    except TooLarge as error:
        raise PresetError(f"{address} has more bytes than are fetched; is it the right file?") from error
    except (OSError, ValueError) as error:
        raise PresetError(f"{address} cannot be fetched: {error}; download it, and give the file") from error
    with tempfile.TemporaryDirectory(prefix="magpolicy-") as folder:
        file = Path(folder) / f"{file_name(Path(urlsplit(address).path).stem)}{ending}"
        file.write_bytes(content)
        try:
            return load_preset(file)
        except PresetError as error:
            raise PresetError(str(error).replace(str(file), address)) from error


def take_in(place: str | Path, name: str = "", *, replace: bool = False) -> Path:
    """Put a calibration's or a preset's file into the library, and return the file there.

    Args:
        place: the file, any that :func:`magpolicy.load_preset` reads; or the https address of one.
        name: the name to keep it under; by default its own, or else that of the file.
        replace: whether it may take the place of one of the same name.

    Raises:
        PresetError: it cannot be read, fetched or written, was changed since it was contributed, or its name is taken.
    """
    found = read_from(place)
    name = name or found.name

    def of_its_name() -> list[Path]:
        taken = _of_that_name(name, found.calibration is not None)
        if taken is not None and not replace:
            raise PresetError(
                f"name={name!r} is in the library, as {taken.file.name}; give it another, name=..., or replace that"
            )
        return [] if taken is None else [taken.file]

    if found.calibration is not None:
        of_its_name()
        return keep(evolve(found.calibration, name=name))
    content = as_json(evolve(found, name=name))
    return put_in(library(), name, JSON, of_its_name, lambda file, new: write_whole(file, content, new=new))


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
