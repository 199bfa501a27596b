"""The choices of ``model_type``: the origin's names, published presets that fit models of ComfyUI, and the user's own files."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

import magpolicy
from magpolicy import Calibration, Preset, PresetError
from magpolicy.adapter import PRESET_ENDINGS, file_name, named
from magpolicy_comfyui._settings import CAUTIOUS

AUTO = "auto"
# As ComfyUI-MagCache wrote them into workflows; first, so that a saved place in the list means what it meant.
ORIGIN = (
    "flux",
    "flux_kontext",
    "chroma",
    "qwen_image",
    "hunyuan_video",
    "hunyuan_video1.5",
    "wan2.1_t2v_1.3B",
    "wan2.1_t2v_14B",
    "wan2.1_i2v_480p_14B",
    "wan2.1_i2v_720p_14B",
    "wan2.1_vace_1.3B",
    "wan2.1_vace_14B",
)
MORE = ("wan2.2_t2v_14B", "wan2.2_i2v_14B", "wan2.2_ti2v_5B", "hunyuan_video1.5_40steps")
_ELSEWHERE = ("open-sora", "kandinsky-5", "framepack (hunyuanvideo)")  # families that ComfyUI itself does not run
FOLDER = "magpolicy"
_MARK = "file: "


def folder() -> Path:
    """Where calibrations are kept: ``models/magpolicy`` of this ComfyUI, unless extra_model_paths says otherwise."""
    import folder_paths

    if FOLDER not in folder_paths.folder_names_and_paths:
        folder_paths.folder_names_and_paths[FOLDER] = ([str(Path(folder_paths.models_dir) / FOLDER)], set(PRESET_ENDINGS))
    return Path(folder_paths.folder_names_and_paths[FOLDER][0][0])


def files() -> dict[str, Path]:
    """The user's own presets, by the name they have in ``model_type``."""
    import folder_paths

    folder()
    found: dict[str, Path] = {}
    for place in folder_paths.folder_names_and_paths[FOLDER][0]:
        for path in sorted(Path(place).glob("*")):
            if path.suffix in PRESET_ENDINGS and path.is_file():
                found.setdefault(f"{_MARK}{path.name}", path)
    return found


def choices(*, auto: bool = True) -> list[str]:
    """All that ``model_type`` offers."""
    known = magpolicy.presets()
    aliased = {magpolicy.preset(name).name for name in (*ORIGIN, *MORE)}
    fitting = [name for name in known if known[name].family not in _ELSEWHERE and name not in aliased]
    return [*([AUTO] if auto else []), *ORIGIN, *MORE, *fitting, *files()]


def find(model_type: str, *, published: bool = False) -> Preset | None:
    """The preset that ``model_type`` names; ``None`` for ``"auto"``.

    Args:
        published: whether its own settings of the rule are asked for, which a calibration of that name has none of.

    Raises:
        PresetError: there is none of that name, or its file cannot be read.
    """
    if model_type == AUTO:
        return None
    if model_type.startswith(_MARK):
        path = files().get(model_type)
        if path is None:
            raise PresetError(f"model_type={model_type!r} is no file in {folder()}; calibrate again, or pick another")
        return magpolicy.preset(path)
    return named(model_type).with_settings(CAUTIOUS if published else ())


def changed(model_type: str | None) -> float:
    """When the file that ``model_type`` names was written; 0 for what does not change."""
    path = files().get(model_type or "")
    return 0.0 if path is None else path.stat().st_mtime


def save(name: str, calibration: Calibration) -> Path:
    """Write a calibration into the folder, and give its path. One of that name is replaced."""
    target = folder() / f"{file_name(name)}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    evolve(calibration, name=target.stem).save(target)
    return target
