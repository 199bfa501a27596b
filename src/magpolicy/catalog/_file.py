"""A user's own preset: a small JSON or TOML file, checked on loading."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PresetError, require
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._file import calibration_in, load_calibration
from magpolicy.calibration._format import KIND, MAX_BYTES, is_calibration
from magpolicy.catalog._presets import Preset, checked
from magpolicy.files._names import JSON, SAFETENSORS, TOML, ending_of
from magpolicy.files._reading import TooLarge, bytes_of, json_of, toml_of
from magpolicy.files._writing import write_whole
from magpolicy.policy._curve import Curve
from magpolicy.schedule._file import holds_schedule, schedule_of
from magpolicy.schedule._schedule import Schedule

MAX_PRESET = 4_000_000
"""Bytes; the largest published table takes 12 kB."""
_EXAMPLE = 'e.g. {"name": "my-model", "ratios": [1.0, 1.02, 0.99], "threshold": 0.06, "max_skips": 3, "retention": 0.2}'


@frozen(kw_only=True)
class _File:
    """The keys of a preset file."""

    name: str
    ratios: list[float] | dict[str, list[float]]
    sigmas: list[float] | None = None
    first_step: int = 0
    family: str = ""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    semantics: str | None = None
    aliases: list[str] = field(factory=list)
    notes: list[str] = field(factory=list)


class HoldsSchedule(PresetError):
    """A file that was to hold a preset holds a schedule, which :attr:`schedule` reads."""

    def __init__(self, file: Path, content: Any) -> None:
        super().__init__(f"{file} holds a schedule, which is for one run; try schedule={str(file)!r}, or `magpolicy simulate`")
        self._file, self._content = file, content

    @property
    def schedule(self) -> Schedule:
        """The schedule. Raises ArgumentError if a value of it is out of range."""
        return schedule_of(self._file, self._content)


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """Read a preset from a ``.json`` or ``.toml`` file; a calibration's ``.json`` or ``.safetensors`` file makes one too.

    Keys: ``name``, ``ratios`` (a list, or a table of lists by stream), and optionally ``sigmas``, ``first_step``, ``family``,
    ``threshold``, ``max_skips``, ``retention``, ``semantics``, ``aliases``, ``notes``. Needs the ``files`` extra.

    Raises:
        PresetError: the file cannot be read, is too large, or a key is unknown, missing or out of range; names the key.
        MissingExtraError: cattrs is not installed.
    """
    file = Path(path)
    if ending_of(file) == SAFETENSORS:
        return preset_of(load_calibration(file), file)
    raw = _parse(file)
    if is_calibration(raw):
        return preset_of(calibration_in(file, raw), file)
    if holds_schedule(raw):
        raise HoldsSchedule(file, raw)
    content = _structure(file, raw)
    try:
        curve = Curve(content.ratios, sigmas=content.sigmas, first_step=content.first_step)
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


def preset_of(calibration: Calibration, path: str | os.PathLike[str] | None = None) -> Preset:
    """A calibration as a preset: its curve, no threshold, named as it is or as its file."""
    model = calibration.provenance.get("model")
    aliases = (*calibration.aliases, *([model] if isinstance(model, str) and model else []))
    return Preset(
        name=calibration.name or (Path(path).stem if path is not None else "calibration"),
        curve=calibration.curve,
        family="calibration",
        aliases=tuple(dict.fromkeys(aliases)),
        source={} if path is None else {"path": str(path)},
        context=dict(calibration.provenance),
        calibration=calibration,
    )


def save_preset(preset: Preset, path: str | os.PathLike[str]) -> None:
    """Write the curve and recommended settings of ``preset`` as JSON that :func:`load_preset` reads back.

    Raises:
        PresetError: a setting is out of range, ``path`` does not end in ``.json``, or it cannot be written.
    """
    if ending_of(path) != JSON:
        raise PresetError(f"path={str(path)!r} must end in {JSON}, which is what is written; try {Path(path).stem}{JSON}")
    write_whole(Path(path), as_json(preset))


def as_json(preset: Preset) -> bytes:
    """What :func:`save_preset` writes.

    Raises:
        PresetError: a setting is out of range.
    """
    curve = checked(preset).curve
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
        "first_step": curve.first_step or None,
        "ratios": {name: list(values) for name, values in curve.ratios.items()},
    }
    kept = {key: value for key, value in content.items() if value not in (None, "", [])}
    return (json.dumps(kept, indent=1) + "\n").encode()


def _parse(file: Path) -> Any:
    toml = ending_of(file) == TOML
    try:
        content = bytes_of(file, MAX_BYTES[JSON])
        if len(content) > MAX_PRESET and KIND.encode() not in content[:200]:
            raise TooLarge(len(content))
    except TooLarge as error:
        most = f"a preset has at most {MAX_PRESET}, a calibration in {JSON} {MAX_BYTES[JSON]}"
        raise PresetError(f"{file} has {error.size} bytes, {most}; is it the right file?") from error
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise PresetError(f"{file} cannot be read: {error}; give the path of a {JSON} or {TOML} file") from error
    try:
        return toml_of(content) if toml else json_of(content)
    except ValueError as error:
        raise PresetError(f"{file} is not valid {'TOML' if toml else 'JSON'}: {error}; {_EXAMPLE}") from error


def _structure(file: Path, raw: Any) -> _File:
    cattrs = require("cattrs", "files")
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook_func(lambda kind: kind == list[str], _texts)
    converter.register_structure_hook(list[float] | dict[str, list[float]], _ratios_hook(converter))
    try:
        found: _File = converter.structure(raw, _File)
    except Exception as error:
        problems = cattrs.transform_error(error, path="preset", format_exception=_explain)
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise PresetError(f"{file}: {'; '.join(problems[:3])}{more}; {_EXAMPLE}") from error
    return found


def _explain(error: BaseException, kind: type | None) -> str:
    if type(error) is ValueError:  # from the hooks below
        return str(error)
    return str(require("cattrs.v", "files").format_exception(error, kind))


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_checks._short(value)} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{_checks._short(value)} is too large a number") from None


def _whole(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{_checks._short(value)} is not a whole number")
    if abs(value) > _checks.MAX_STEPS:
        raise ValueError(f"{_checks._short(value)} is too large a number")
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_checks._short(value)} is not text")
    return value


def _texts(value: Any, _: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{_checks._short(value)} is not a list of texts")
    return value


def _ratios_hook(converter: Any) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, dict):
            return converter.structure(value, dict[str, list[float]])
        if isinstance(value, list):
            return converter.structure(value, list[float])
        raise ValueError("is neither a list of ratios nor a table of lists by stream")

    return structure
