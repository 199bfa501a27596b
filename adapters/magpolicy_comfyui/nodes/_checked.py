"""Values that come from outside a workflow, held against what a node's inputs allow: their kinds, bounds and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from magpolicy import ArgumentError

_LONGEST = 40


def check(values: Mapping[str, Any], inputs: Mapping[str, tuple[Any, ...]]) -> None:
    """Check every value that has an input of its name.

    Args:
        values: by name; others than ``inputs`` names are not looked at.
        inputs: as a node's ``INPUT_TYPES`` describes them: ``("INT", {"min": 0, ...})``, ``(["a", "b"], {...})``.

    Raises:
        ArgumentError: a value is of another kind or out of range; the message names it.
    """
    for name, value in values.items():
        if name in inputs:
            kind, *more = inputs[name]
            _check(name, value, kind, more[0] if more else {})


def _check(name: str, value: Any, kind: Any, options: Mapping[str, Any]) -> None:
    mend = f"; try {options['default']!r}" if "default" in options else ""
    if isinstance(kind, list):
        if value not in kind:
            raise ArgumentError(f"{name}={_short(value)} must be one of {', '.join(map(repr, kind))}{mend}")
    elif kind == "STRING":
        if not isinstance(value, str):
            raise ArgumentError(f"{name}={_short(value)} must be text{mend}")
    elif kind in ("INT", "FLOAT"):
        _check_number(name, value, kind == "INT", options, mend)


def _check_number(name: str, value: Any, whole: bool, options: Mapping[str, Any], mend: str) -> None:
    what = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(f"{name}={_short(value)} must be {what}{mend}")
    low, high = options.get("min", -math.inf), options.get("max", math.inf)
    if not low <= value <= high or (whole and value != int(value)):
        raise ArgumentError(f"{name}={_short(value)} must be {what} from {low:g} to {high:g}{mend}")


def _short(value: Any) -> str:
    large = isinstance(value, int) and abs(value) >= 10**_LONGEST  # Python writes no number of thousands of digits
    shown = "a number of many digits" if large else repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
