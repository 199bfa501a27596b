"""Calibrations that were made with the node, in ComfyUI's own folder of models."""

from __future__ import annotations

import functools
from pathlib import Path

from attrs import evolve

import magpolicy
from magpolicy import Calibration, MagPolicyError, Preset
from magpolicy.adapter import PRESET_ENDINGS, ModelIdentity, file_name

FOLDER = "magpolicy"
MARK = "file: "


def folder() -> Path:
    """Where calibrations are kept: ``models/magpolicy`` of this ComfyUI, unless extra_model_paths says otherwise."""
    return _folders()[0]


def files() -> dict[str, Path]:
    """The user's own presets, by the name they have in ``model_type``."""
    found: dict[str, Path] = {}
    for place in _folders():
        for path in sorted(place.glob("*")):
            if path.suffix in PRESET_ENDINGS and path.is_file():
                found.setdefault(f"{MARK}{path.name}", path)
    return found


def save(name: str, calibration: Calibration) -> Path:
    """Write a calibration into the folder, and give its path. One of that name is replaced."""
    target = folder() / f"{file_name(name)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    evolve(calibration, name=target.stem).save(target)
    return target


def made_with(identity: ModelIdentity) -> list[Preset]:
    """Those that were made with this model, or with one near to it. A file that cannot be read is passed over."""
    read = (_read(path, path.stat().st_mtime_ns) for path in files().values())
    return [p for p in read if p is not None and p.calibration and identity.nearness(ModelIdentity.of(p.calibration))]


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Preset | None:
    try:
        return magpolicy.preset(path)
    except MagPolicyError:
        return None


def _folders() -> list[Path]:
    import folder_paths

    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.folder_names_and_paths[FOLDER] = ([str(Path(folder_paths.models_dir) / FOLDER)], set(PRESET_ENDINGS))
    return [Path(place) for place in folder_paths.folder_names_and_paths[FOLDER][0]]
