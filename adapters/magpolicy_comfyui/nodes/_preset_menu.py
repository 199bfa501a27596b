"""The choices of ``model_type``: the origin's names, published presets that fit models of ComfyUI, and the user's own files."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

import magpolicy
from magpolicy import Calibration, Preset, PresetError
from magpolicy.adapter import keep_in, named
from magpolicy_comfyui._identity import MARK, files, folders
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
CALIBRATIONS = {
    "chroma_calibration": "chroma",
    "flux_calibration": "flux",
    "flux_kontext_calibration": "flux_kontext",
    "hunyuanvideo1.5": "hunyuan_video1.5",
}
"""What the origin's calibration node calls its models, and what its other node does (ComfyUI-MagCache, ``nodes.py``)."""
_ELSEWHERE = ("open-sora", "kandinsky-5", "framepack (hunyuanvideo)")  # families that ComfyUI itself does not run


def folder() -> Path:
    """Where calibrations are kept."""
    return folders()[0]


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
    if model_type.startswith(MARK):
        path = files().get(model_type)
        if path is None:
            raise PresetError(f"model_type={model_type!r} is no file in {folder()}; calibrate again, or pick another")
        return magpolicy.preset(path)
    return named(model_type).with_settings(CAUTIOUS if published else ())


def stem(model_type: str) -> str:
    """What ``model_type`` names, of a file without its ending."""
    return Path(model_type.removeprefix(MARK)).stem if model_type.startswith(MARK) else model_type


def changed(model_type: str | None) -> float:
    """When the file that ``model_type`` names was written; 0 for what does not change."""
    path = files().get(model_type or "")
    return 0.0 if path is None else path.stat().st_mtime


def save(name: str, calibration: Calibration) -> Path:
    """Write a calibration into the folder, and give its path. One of just that name is replaced, no other file."""
    return keep_in(folder(), evolve(calibration, name=name))
