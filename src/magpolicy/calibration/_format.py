"""The file format of a calibration: a header and tables, as JSON, or as safetensors where there is much of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import PresetError, require
from magpolicy.calibration._gram import Floats
from magpolicy.files._names import CALIBRATION_ENDINGS, JSON, SAFETENSORS, ending_of
from magpolicy.files._reading import TooLarge, bytes_of, json_of, size_of
from magpolicy.files._writing import write_whole

if TYPE_CHECKING:
    from magpolicy.calibration._calibration import Calibration

KIND, VERSION = "magpolicy-calibration", 1
MAX_BYTES = {JSON: 40_000_000, SAFETENSORS: 200_000_000}
"""A number takes 20 bytes of JSON, and 40 MB are read in a second or two. Two streams of 1000 evaluations, window 16 and 500
samples take 136 MB as safetensors."""
_SMALLER = {JSON: f"save it as {SAFETENSORS}", SAFETENSORS: "calibrate with a smaller window or fewer tokens"}
_ENDINGS = " or ".join(CALIBRATION_ENDINGS)


def save(calibration: Calibration, path: str | os.PathLike[str], *, new: bool = False) -> None:
    """See :meth:`magpolicy.Calibration.save`; ``new``: only if there is no such file yet, else a :class:`FileExistsError`."""
    file = Path(path)
    ending = ending_of(file)
    if ending not in CALIBRATION_ENDINGS:
        raise PresetError(f"path={str(path)!r} must end in {_ENDINGS}; try {file.stem}{JSON}")
    header, tables = _taken_apart(calibration)
    try:
        json_of(json.dumps(header, allow_nan=False))  # what could not be read again is not written
        if ending == JSON:
            written = json.dumps(_with_tables(header, tables), allow_nan=False, indent=1).encode()
        else:
            text = {"kind": KIND, "calibration": json.dumps(header, allow_nan=False)}
            written = require("safetensors.numpy", "files").save(tables, metadata=text)
    except (TypeError, ValueError) as error:
        raise PresetError(
            f"provenance={_checks._short(dict(calibration.provenance))} must hold what JSON can: {error}; leave that out"
        ) from error
    if len(written) > MAX_BYTES[ending]:
        raise PresetError(f"path={str(path)!r} would have {len(written)} bytes, {_at_most(ending)}; {_SMALLER[ending]}")
    write_whole(file, written, new=new)


def _at_most(ending: str) -> str:
    return f"a calibration in {ending} has at most {MAX_BYTES[ending]}"


def read(file: Path) -> tuple[Any, Mapping[str, Floats]]:
    """The header of a calibration's file, and the tables that it names; the tables of JSON stand in the header itself.

    Raises:
        PresetError: the file cannot be read, or is none of the two formats.
        MissingExtraError: ``.safetensors`` needs the ``files`` extra.
    """
    ending = SAFETENSORS if ending_of(file) == SAFETENSORS else JSON
    reads = _safetensors if ending == SAFETENSORS else _json
    try:
        return reads(file)
    except TooLarge as error:
        raise PresetError(f"{file} has {error.size} bytes, {_at_most(ending)}; is it the right file?") from error
    except OSError as error:
        raise PresetError(f"{file} cannot be read: {error}; give the path of a {_ENDINGS} file") from error
    except ValueError as error:
        raise PresetError(f"{file} holds no calibration: {error}; it must be one that Calibration.save wrote") from error


def _json(file: Path) -> tuple[Any, Mapping[str, Floats]]:
    return json_of(bytes_of(file, MAX_BYTES[JSON])), {}


def _safetensors(file: Path) -> tuple[Any, Mapping[str, Floats]]:
    library = require("safetensors.numpy", "files")  # brings safe_open along
    size_of(file.stat(), MAX_BYTES[SAFETENSORS])
    try:
        with library.safe_open(file, framework="numpy") as opened:
            header = opened.metadata()["calibration"]
            tables = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
    except Exception as error:  # the library has an error of its own, of no public base
        raise ValueError(repr(error)) from error
    return json_of(header), tables


def is_calibration(raw: Any) -> bool:
    """Whether the content of a JSON file is a calibration's."""
    return isinstance(raw, Mapping) and raw.get("kind") == KIND


def content_of(calibration: Calibration) -> dict[str, Any]:
    """All that a calibration's ``.json`` file holds, as JSON values."""
    return _with_tables(*_taken_apart(calibration))


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
        "prior_share": float(calibration.prior_share),
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
