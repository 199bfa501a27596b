"""What the server and a request ask for: keywords of ``magpolicy.attach``, as JSON."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import magpolicy
from magpolicy import ArgumentError, AttachRequest
from magpolicy.adapter import asked_of, settings_among

VARIABLE = "MAGPOLICY_SGLANG"
"""The environment variable with the server's settings: a JSON object, or the path of a file with one."""
KEY = "magpolicy"
"""Where ``diffusers_kwargs`` of a request has its own."""
_NOT_HERE = frozenset({"target", "blocks", "scope", "steps", "curve", "storage_dtype", "group"})
_MEASURES = frozenset({"learn", "calibrate", "window", "tokens", "reduce"})
KEYWORDS = tuple(sorted(inspect.signature(magpolicy.attach).parameters.keys() - _NOT_HERE - _MEASURES))
"""The keywords of :func:`magpolicy.attach` that a server can set. A schedule is the path of its file."""
_SOURCES = frozenset({"calibration", "preset", "ratios"})
_RULE = frozenset({"end_step", "rule", "semantics", "start_step", "threshold"})


def of_server() -> dict[str, Any] | None:
    """The settings of the environment; ``None`` if there are none.

    Raises:
        ArgumentError: they are no JSON object of known keywords, or a value is wrong.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"{VARIABLE}={text!r} must be a JSON object or the path of one; {error.strerror}") from None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f'{VARIABLE} must be a JSON object, as {{"speedup": 2.0}}; {error}') from None
    settings = settings_among(VARIABLE, found, KEYWORDS)
    if not (_RULE & settings.keys() and not _SOURCES & settings.keys()):  # the rule goes by a preset of the model to come
        try:
            AttachRequest.of(settings)
        except ArgumentError as error:
            raise ArgumentError(f"{VARIABLE}: {error}") from error
    return settings


def of_request(extra: Mapping[str, Any] | None) -> dict[str, Any] | bool | None:
    """What one request asks for itself: settings in place of the server's, ``False`` (compute), or ``None`` (nothing).

    Args:
        extra: the ``diffusers_kwargs`` of the request.

    Raises:
        ArgumentError: it is no mapping of settings that a request may have, nor ``False``.
    """
    return asked_of(f"diffusers_kwargs[{KEY!r}]", (extra or {}).get(KEY))


def wanted() -> bool:
    """Whether the server was started with settings, usable or not."""
    return bool(os.environ.get(VARIABLE, "").strip())
