"""A calibration in one file: JSON, or safetensors where there is much of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PresetError, require
from magpolicy.calibration._calibration import Calibration, StreamMoments
from magpolicy.calibration._gram import Floats

KIND, VERSION = "magpolicy-calibration", 1
MAX_BYTES = 200_000_000  # two streams of 1000 evaluations, window 16 and 500 samples take 136 MB
ENDINGS = (".json", ".safetensors")
_KEYS = {"kind": str, "version": int, "name": str, "aliases": list, "sigmas": list, "streams": dict, "cross": list,
         "provenance": dict}  # fmt: skip
_STREAM_KEYS = {"gram", "ratios", "spread", "cosine", "samples"}


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """See :meth:`magpolicy.Calibration.save`."""
    file = Path(path)
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        raise PresetError(f"path={str(path)!r} must end in .json or .safetensors; try {file.stem}.json")
    header, tables = _taken_apart(calibration)
    try:
        if ending == ".json":
            written = json.dumps(_with_tables(header, tables), allow_nan=False, indent=1).encode()
        else:
            text = {"kind": KIND, "calibration": json.dumps(header, allow_nan=False)}
            written = require("safetensors.numpy", "files").save(tables, metadata=text)
    except (TypeError, ValueError) as error:
        raise PresetError(
            f"provenance={_checks._short(dict(calibration.provenance))} must hold what JSON can: {error}; leave that out"
        ) from error
    write_whole(file, written)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        PresetError: it cannot be written.
    """
    handle, part = None, ""
    try:
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise PresetError(f"{file} cannot be written: {error}; give a path in a folder you can write to") from error
    except BaseException:  # Ctrl-C too: nothing half-written stays
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a calibration that :meth:`magpolicy.Calibration.save` wrote.

    Raises:
        PresetError: the file cannot be read, is of another kind or version, or a key is unknown, missing or out of range; the
            message names it.
        MissingExtraError: ``.safetensors`` needs the ``files`` extra.
    """
    file = Path(path)
    header, tables = _read(file)
    try:
        return _put_together(header, tables)
    except PresetError as error:
        raise PresetError(f"{file}: {error}") from error
    except ArgumentError as error:
        raise PresetError(f"{file}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise PresetError(f"{file} holds no calibration: {type(error).__name__}: {error}; calibrate again") from error


def is_calibration(raw: Any) -> bool:
    """Whether the content of a JSON file is a calibration's."""
    return isinstance(raw, Mapping) and raw.get("kind") == KIND


def _taken_apart(calibration: Calibration) -> tuple[dict[str, Any], dict[str, Floats]]:
    tables: dict[str, Floats] = {}
    streams: dict[str, Any] = {}
    for place, (name, moments) in enumerate(calibration.streams.items()):
        streams[name] = {"ratios": moments.ratios, "spread": moments.spread, "cosine": moments.cosine}
        streams[name]["gram"] = f"gram.{place}"
        tables[f"gram.{place}"] = np.ascontiguousarray(moments.gram)
        if moments.samples is not None:
            streams[name]["samples"] = f"samples.{place}"
            tables[f"samples.{place}"] = np.ascontiguousarray(moments.samples)
    cross = []
    for place, (pair, table) in enumerate(calibration.cross.items()):
        cross.append({"streams": list(pair), "products": f"cross.{place}"})
        tables[f"cross.{place}"] = np.ascontiguousarray(table)
    header = {
        "kind": KIND,
        "version": VERSION,
        "name": calibration.name,
        "aliases": list(calibration.aliases),
        "sigmas": list(calibration.sigmas),
        "provenance": dict(calibration.provenance),
        "streams": streams,
        "cross": cross,
    }
    return header, tables


def _with_tables(header: dict[str, Any], tables: Mapping[str, Floats]) -> dict[str, Any]:
    """The header with the tables in place of their names; nan becomes null, which JSON has."""

    def fill(value: Any) -> Any:
        if isinstance(value, str) and value in tables:
            return _as_lists(tables[value])
        return value

    streams = {name: {key: fill(value) for key, value in row.items()} for name, row in header["streams"].items()}
    cross = [{key: fill(value) for key, value in row.items()} for row in header["cross"]]
    return header | {"streams": streams, "cross": cross}


def _as_lists(table: Floats) -> Any:
    if table.ndim > 1:
        return [_as_lists(row) for row in table]
    return [None if math.isnan(value) else float(value) for value in table]


def _read(file: Path) -> tuple[Any, Mapping[str, Floats]]:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise PresetError(f"{file} has {size} bytes, a calibration has at most {MAX_BYTES}; is it the right file?")
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise PresetError(f"{file} cannot be read: {error}; give the path of a .json or .safetensors file") from error
    if file.suffix.lower() == ".safetensors":
        library = require("safetensors.numpy", "files")
        try:
            length = int.from_bytes(content[:8], "little")
            text = json.loads(content[8 : 8 + length])["__metadata__"]["calibration"]
            return json.loads(text), library.load(content)
        except Exception as error:  # the library has an error of its own, of no public base
            raise PresetError(f"{file} holds no calibration: {error!r}; it must be one that Calibration.save wrote") from error
    try:
        return json.loads(content.decode("utf-8")), {}
    except (ValueError, RecursionError) as error:
        raise PresetError(f"{file} is not valid JSON: {error}") from error


def _put_together(header: Any, tables: Mapping[str, Floats]) -> Calibration:
    if not is_calibration(header):
        raise PresetError(f"kind must be {KIND!r}; the file is no calibration")
    if header.get("version") != VERSION:
        raise PresetError(
            f"version={_checks._short(header.get('version'))} is not {VERSION}; update magpolicy, or calibrate again"
        )
    _check_keys("", header, _KEYS, set(_KEYS) - {"aliases", "name", "cross", "provenance"})
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
