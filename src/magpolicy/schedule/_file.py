"""A schedule in a file: the JSON of :meth:`magpolicy.Schedule.to_dict`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magpolicy._errors import ArgumentError
from magpolicy.files._names import JSON
from magpolicy.files._reading import TooLarge, bytes_of, json_of
from magpolicy.schedule._schedule import Schedule

MAX_BYTES = 20_000_000
"""A plan of 1000 steps and two streams takes 0.3 MB."""


def load_schedule(path: str | os.PathLike[str]) -> Schedule:
    """Read a schedule that :meth:`magpolicy.Schedule.save` or ``magpolicy plan --output`` wrote.

    Raises:
        ArgumentError: the file cannot be read, holds something else or several schedules, or a value of it is out of range.
    """
    file = Path(path)
    data = _read(file)
    if isinstance(data, list):
        raise ArgumentError(f"{file} holds {len(data)} schedules, one a run; read it with json.load, and give each run its own")
    if not holds_schedule(data):
        raise ArgumentError(f"{file} holds no schedule; give a file that Schedule.save or `magpolicy plan --output` wrote")
    return schedule_of(file, data)


def schedule_of(file: Path, data: Any) -> Schedule:
    """The schedule that the content of a file is.

    Raises:
        ArgumentError: a value of it is out of range.
    """
    try:
        return Schedule.from_dict(data)
    except ArgumentError as error:
        raise ArgumentError(f"{file}: {error}") from error


def holds_schedule(data: Any) -> bool:
    """Whether the content of a JSON file is a schedule's."""
    return isinstance(data, Mapping) and {"mask", "streams", "first_step"} <= set(data)


def _read(file: Path) -> Any:
    try:
        return json_of(bytes_of(file, MAX_BYTES))
    except TooLarge as error:
        raise ArgumentError(
            f"{file} has {error.size} bytes, a schedule has at most {MAX_BYTES}; is it the right file?"
        ) from error
    except OSError as error:
        raise ArgumentError(f"{file} cannot be read: {error}; give the path of a schedule's {JSON} file") from error
    except ValueError as error:
        raise ArgumentError(f"{file} is not valid JSON: {error}; give a file that Schedule.save wrote") from error
