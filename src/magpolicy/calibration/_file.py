"""Reading a calibration from its file, with every key checked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PresetError
from magpolicy.calibration import _format
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._format import KIND, VERSION, is_calibration
from magpolicy.calibration._gram import Floats
from magpolicy.calibration._moments import StreamMoments

_KEYS = {"kind": str, "version": int, "name": str, "aliases": list, "sigmas": list, "streams": dict, "cross": list,
         "provenance": dict, "prior_share": float}  # fmt: skip
_STREAM_KEYS = {"gram", "ratios", "spread", "cosine", "samples"}


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration that :meth:`magpolicy.Calibration.save` wrote.

    Raises:
        PresetError: the file cannot be read, is of another kind or version, or a key is unknown, missing or out of range; the
            message names it.
        MissingExtraError: ``.safetensors`` needs the ``files`` extra.
    """
    file = Path(path)
    return calibration_in(file, *_format.read(file))


def calibration_in(file: Path, header: Any, tables: Mapping[str, Floats] = MappingProxyType({})) -> Calibration:
    """The calibration that a file's content says.

    Raises:
        PresetError: it is none; names the file, and what is wrong.
    """
    try:
        return _put_together(header, tables)
    except PresetError as error:
        raise PresetError(f"{file}: {error}") from error
    except ArgumentError as error:
        raise PresetError(f"{file}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise PresetError(f"{file} holds no calibration: {type(error).__name__}: {error}; calibrate again") from error


def _put_together(header: Any, tables: Mapping[str, Floats]) -> Calibration:
    if not is_calibration(header):
        raise PresetError(f"kind must be {KIND!r}; the file is no calibration")
    if header.get("version") != VERSION:
        raise PresetError(
            f"version={_checks._short(header.get('version'))} is not {VERSION}; update magpolicy, or calibrate again"
        )
    _check_keys("", header, _KEYS, set(_KEYS) - {"aliases", "name", "cross", "provenance", "prior_share"})
    for name, kind in _KEYS.items():
        if name in header and not isinstance(header[name], kind):
            raise PresetError(f"{name}={_checks._short(header[name])} must be a {kind.__name__}")
    streams = {}
    for name, row in header["streams"].items():
        _check_keys(f"streams.{name}", row, _STREAM_KEYS, _STREAM_KEYS - {"samples"})
        try:
            streams[name] = StreamMoments(**{key: _table(value, tables) for key, value in row.items()})
        except ArgumentError as error:
            raise PresetError(f"streams.{name}.{error}") from error
    cross = {}
    for place, row in enumerate(header.get("cross", [])):
        _check_keys(f"cross[{place}]", row, {"streams", "products"}, {"streams", "products"})
        first, second = row["streams"]
        cross[str(first), str(second)] = _table(row["products"], tables)
    return Calibration(
        sigmas=header["sigmas"],
        streams=streams,
        cross=cross,
        provenance=header.get("provenance", {}),
        name=header.get("name", ""),
        aliases=header.get("aliases", ()),
        prior_share=header.get("prior_share", 0.0),
    )


def _check_keys(where: str, row: Any, known: Any, needed: set[str]) -> None:
    within = f" in {where}" if where else ""
    if not isinstance(row, Mapping):
        raise PresetError(f"{where or 'the file'}={_checks._short(row)} must be a mapping")
    if extra := sorted(set(row) - set(known)):
        raise PresetError(f"{extra[0]!r}{within} is not known; the keys are {', '.join(sorted(known))}")
    if missing := sorted(needed - set(row)):
        raise PresetError(f"{missing[0]!r}{within} is missing")


def _table(value: Any, tables: Mapping[str, Floats]) -> Any:
    if isinstance(value, str):
        if value not in tables:
            raise PresetError(f"table {value!r} is missing")
        return tables[value]
    return np.array(_numbers(value), dtype=np.float64)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{_checks._short(value)} is not a number")
    return value
