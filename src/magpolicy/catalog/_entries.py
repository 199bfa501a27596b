"""What lies in the user's library: files kept by name, and what runs left; listing them, and forgetting one."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from magpolicy import _checks
from magpolicy._errors import PresetError
from magpolicy.catalog._folder import files_in, library, read
from magpolicy.catalog._identity import ModelIdentity
from magpolicy.catalog._learned import FOLDER
from magpolicy.catalog._presets import Preset


@frozen
class LibraryEntry:
    """One file of the library."""

    __module__ = "magpolicy.adapter"

    file: Path
    preset: Preset | None
    """What it holds; ``None``: it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""
    learned: bool = False
    """Whether runs left it; else the user kept it."""

    @property
    def name(self) -> str:
        """The preset's name, of a file that cannot be read its own."""
        return self.file.name if self.preset is None else self.preset.name

    @property
    def identity(self) -> ModelIdentity:
        """The model that a calibration was made with, as far as it says."""
        calibration = None if self.preset is None else self.preset.calibration
        return ModelIdentity("") if calibration is None else ModelIdentity.of(calibration)


def entries() -> tuple[LibraryEntry, ...]:
    """Every file of the library: first those that the user kept, then what runs left.

    Raises:
        PresetError: nothing says where the library is.
    """
    folder = library()
    return tuple(
        _entry(file, learned) for place, learned in ((folder, False), (folder / FOLDER, True)) for file in files_in(place)
    )


def _entry(file: Path, learned: bool) -> LibraryEntry:
    content = read(file)
    return LibraryEntry(file, None, content, learned) if isinstance(content, str) else LibraryEntry(file, content, "", learned)


def entry(name: str) -> LibraryEntry:
    """The entry of that name, or of that file's name; case is ignored if none is written so.

    Raises:
        PresetError: there is none; the message lists similar names.
    """
    every = entries()
    for wanted in (lambda text: text, str.lower):
        for one in every:
            if wanted(name) in (wanted(one.name), wanted(one.file.name), wanted(one.file.stem)):
                return one
    hint = _checks.meant(name, [one.name for one in every])
    raise PresetError(f"name={name!r} is not in {library()}; {hint}`magpolicy library list` lists what is kept")


def forget(name: str) -> Path:
    """Remove the file of that name from the library, and return its path.

    Raises:
        PresetError: there is none of that name, or it cannot be removed.
    """
    file = entry(name).file
    try:
        file.unlink()
    except OSError as error:
        raise PresetError(f"name={name!r}: {file} cannot be removed: {error}; remove the file yourself") from error
    return file
