"""A user's own preset: a small JSON or TOML file, checked on loading."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from attrs import field, frozen

from magpolicy._curve import Curve
from magpolicy._errors import ArgumentError, PresetError, require
from magpolicy._presets import Preset, checked

MAX_BYTES = 4_000_000  # the largest published table takes 12 kB
_EXAMPLE = 'e.g. {"name": "my-model", "ratios": [1.0, 1.02, 0.99], "threshold": 0.06, "max_skips": 3, "retention": 0.2}'


@frozen(kw_only=True)
class _File:
    """The keys of a preset file."""

    name: str
    ratios: list[float] | dict[str, list[float]]
    sigmas: list[float] | None = None
    family: str = ""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    semantics: str | None = None
    aliases: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset from a ``.json`` or ``.toml`` file.

    Keys: ``name``, ``ratios`` (a list, or a table of lists by stream), and optionally ``sigmas``, ``family``, ``threshold``,
    ``max_skips``, ``retention``, ``semantics``, ``aliases``, ``notes``. Needs the ``files`` extra.

    Raises:
        PresetError: the file cannot be read, is too large, or a key is unknown, missing or out of range; names the key.
        MissingExtraError: cattrs is not installed.
    """
    file = Path(path)
    content = _structure(file, _parse(file))
    try:
        curve = Curve(content.ratios, sigmas=content.sigmas)
        return checked(
            Preset(
                name=content.name,
                curve=curve,
                family=content.family,
                threshold=content.threshold,
                max_skips=content.max_skips,
                retention=content.retention,
                semantics=content.semantics,
                aliases=tuple(content.aliases),
                notes=tuple(content.notes),
                source={"path": str(file)},
            )
        )
    except ArgumentError as error:
        raise PresetError(f"{file}: {error}") from error


def save_preset(preset: Preset, path: str | os.PathLike[str]) -> None:
    """Write the curve and recommended settings of ``preset`` as JSON that :func:`load_preset` reads back."""
    curve = preset.curve
    content: dict[str, Any] = {
        "name": preset.name,
        "family": preset.family,
        "threshold": preset.threshold,
        "max_skips": preset.max_skips,
        "retention": preset.retention,
        "semantics": preset.semantics,
        "aliases": list(preset.aliases),
        "notes": list(preset.notes),
        "sigmas": None if curve.sigmas is None else list(curve.sigmas),
        "ratios": {name: list(values) for name, values in curve.ratios.items()},
    }
    kept = {key: value for key, value in content.items() if value not in (None, "", [])}
    Path(path).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _parse(file: Path) -> Any:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise PresetError(f"{file} has {size} bytes, a preset has at most {MAX_BYTES}; is it the right file?")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PresetError(f"{file} cannot be read: {error}; give the path of a .json or .toml file") from error
    try:
        if file.suffix.lower() == ".toml":
            return require("tomllib" if sys.version_info >= (3, 11) else "tomli", "files").loads(text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PresetError(f"{file} is not valid {file.suffix[1:].upper()}: {error}") from error


def _structure(file: Path, raw: Any) -> _File:
    cattrs = require("cattrs", "files")
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(list[float] | dict[str, list[float]], _ratios_hook(converter))
    try:
        found: _File = converter.structure(raw, _File)
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, path="preset"))
        raise PresetError(f"{file}: {problems}; {_EXAMPLE}") from error
    return found


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _whole(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _ratios_hook(converter: Any) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, dict):
            return converter.structure(value, dict[str, list[float]])
        if isinstance(value, list):
            return converter.structure(value, list[float])
        raise ValueError("is neither a list of ratios nor a table of lists by stream")

    return structure
