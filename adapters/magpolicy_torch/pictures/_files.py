"""Pictures and videos in folders: which belong together, and their frames one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magpolicy import ArgumentError, MissingExtraError
from magpolicy.adapter import require

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif")
_FPS = 16  # of videos written
Frame = NDArray[Any]
"""``(height, width, 3)``, whole numbers up to 255."""


def is_video(path: Path) -> bool:
    """Whether the file's ending is one of a video."""
    return path.suffix.lower() in VIDEOS


def media_in(folder: Path, name: str) -> dict[str, Path]:
    """The pictures and videos of a folder, by file name, sorted. ``name`` is the argument that gave it, for messages.

    Raises:
        ArgumentError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{name}={folder} is no folder; give the folder that the pictures or videos were written to")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*PICTURES, *VIDEOS) and path.is_file())
    if not found:
        raise ArgumentError(f"{name}={folder} has no pictures or videos; they end in {', '.join((*PICTURES, *VIDEOS))}")
    return {path.name: path for path in found}


def pairs(full: Path, cached: Path) -> list[tuple[str, Path, Path]]:
    """Files of the same name in both folders: the name, the full run's file, the other run's.

    Raises:
        ArgumentError: a folder is missing or empty, or a file has no partner; the message names it.
    """
    first, second = media_in(full, "FULL_DIR"), media_in(cached, "CACHED_DIR")
    for here, there, names in ((full, cached, first.keys() - second.keys()), (cached, full, second.keys() - first.keys())):
        if names:
            missing = sorted(names)
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ArgumentError(f"{there} has no {', '.join(missing[:3])}{more}, which {here} has; files are matched by name")
    return [(name, first[name], second[name]) for name in first]


def frames_of(path: Path) -> Iterator[Frame]:
    """The frames of a video, or the one of a picture, without their transparency.

    Raises:
        ArgumentError: it cannot be read.
        MissingExtraError: imageio or PyAV is not installed.
    """
    imageio = require("imageio.v3", "evaluate")
    options: dict[str, Any] = {"mode": "RGB"}
    if not is_video(path):
        options["index"] = 0
    elif path.suffix.lower() != ".gif":
        require("av", "evaluate")
        options = {"plugin": "pyav"}
    try:
        yield from imageio.imiter(path, **options) if is_video(path) else [imageio.imread(path, **options)]
    except Exception as error:  # whatever a decoder may say
        what = "video" if is_video(path) else "picture"
        mend = "write it again, or take it out of both folders"
        raise ArgumentError(f"{path} cannot be read as a {what}; {mend} ({error})") from error


def save(path: Path, frames: NDArray[Any]) -> Path:
    """Write a picture as PNG, or a video as MP4 where imageio and PyAV are installed, else the frames as PNG in a folder.

    Args:
        path: the file, without its ending.
        frames: ``(frames, height, width, channels)`` in bytes, one channel or three.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    image = require("PIL.Image", "evaluate")
    rgb = np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames
    if len(rgb) == 1:
        image.fromarray(rgb[0]).save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    try:
        require("av", "evaluate")
        imageio = require("imageio.v3", "evaluate")
    except MissingExtraError:
        path.mkdir(exist_ok=True)
        for place, frame in enumerate(rgb):
            image.fromarray(frame).save(path / f"{place:04}.png")
        return path
    even = rgb[:, : rgb.shape[1] // 2 * 2, : rgb.shape[2] // 2 * 2]  # the codec takes no odd sizes
    imageio.imwrite(path.with_suffix(".mp4"), even, plugin="pyav", codec="libx264", fps=_FPS)
    return path.with_suffix(".mp4")
