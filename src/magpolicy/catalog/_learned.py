"""What runs taught, kept by itself: a subfolder of the user's library, one file for each model and set of streams."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from attrs import evolve

from magpolicy._errors import LibraryWarning, MagPolicyError, PresetError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._lessons import Taught
from magpolicy.catalog._folder import HOME, library, made, presets_in
from magpolicy.catalog._identity import KEY, ModelIdentity
from magpolicy.catalog._presets import Preset
from magpolicy.files._names import JSON, file_name

FOLDER = "learned"
DATE = "learned"
"""Where the provenance of a learned calibration has the date."""
MOST = 200
"""So many files are kept: each change of a model's weights makes another one."""


def remember(identity: ModelIdentity, calibration: Calibration) -> Path | None:
    """Keep what runs of a model taught, in the place of what was kept before for it and these streams.

    Nothing else is overwritten, and the file appears whole or not at all. The calibration gets a name, the identity, and under
    ``provenance["learned"]`` the date in UTC.

    Returns:
        The file; ``None`` if it cannot be written. The first time in a process that is told by a :class:`LibraryWarning`.
    """
    name = f"{identity.name(calibration.streams)}-learned"
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    noted = {**calibration.provenance, KEY: identity.to_dict(), DATE: date}
    try:
        folder = made(library() / FOLDER)
        file = folder / _file_of(identity, calibration.streams)
        evolve(calibration, name=name, provenance=noted).save(file)
    except MagPolicyError as error:
        _warn_once(str(error))
        return None
    _leave_the_newest(folder)
    return file


def learned(identity: ModelIdentity, streams: Iterable[str] | None = None) -> Calibration | None:
    """What runs of just this model taught; ``None`` if nothing is known.

    Args:
        identity: the model.
        streams: the streams of the run; by default the newest file of whatever streams.
    """
    found = [preset.calibration for preset in learned_of(identity.model) if preset.calibration is not None]
    mine = [c for c in found if ModelIdentity.of(c).digest() == identity.digest()]
    if streams is not None:
        mine = [c for c in mine if set(c.streams) == set(streams)]
    return max(mine, key=date_of, default=None)


def learned_of(model: str = "") -> list[Preset]:
    """What was learned about the models of one class, or of all; a file that cannot be read is left out with a warning."""
    try:
        every = presets_in(library() / FOLDER, f"{file_name(model)}-" if model else "")  # reading them all would be felt
    except PresetError:
        return []
    found = [preset for preset in every if preset.calibration is not None]
    return [p for p in found if p.calibration and (not model or ModelIdentity.of(p.calibration).model == model)]


def date_of(calibration: Calibration) -> str:
    """When it was learned, as text that sorts; ``""`` if it was not."""
    return str(calibration.provenance.get(DATE, ""))


def in_words(calibration: Calibration) -> str:
    """Who taught a learned calibration, and when: ``what a run in full taught on 2026-11-28``."""
    taught = Taught.of(calibration)
    who = "earlier runs" if taught is None else taught.in_words
    date = date_of(calibration)[:10]
    when = "" if not date else f" on {date}" if taught is not None and taught.runs == 1 else f" until {date}"
    return f"what {who} taught{when}"


def _file_of(identity: ModelIdentity, streams: Iterable[str]) -> str:
    return f"{file_name(identity.model or 'model')}-{identity.digest(streams)}{JSON}"


def _leave_the_newest(folder: Path) -> None:
    with contextlib.suppress(OSError):
        files = sorted(folder.glob(f"[!.]*{JSON}"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-MOST]:
            file.unlink(missing_ok=True)


_told: list[str] = []  # the problem that this process told


def _warn_once(problem: str) -> None:
    if _told:
        return
    _told.append(problem)
    mend = "" if HOME in problem else f"; set {HOME} to a folder you can write to"
    warnings.warn(f"what runs teach is not kept: {problem}{mend}", LibraryWarning, stacklevel=4)
