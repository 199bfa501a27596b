"""What the server and a request ask for: keywords of ``magpolicy.attach``, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from magpolicy import ArgumentError

VARIABLE = "MAGPOLICY_SGLANG"
"""The environment variable with the server's settings: a JSON object, or the path of a file with one."""
KEY = "magpolicy"
"""Where ``diffusers_kwargs`` of a request has its own."""
KEYWORDS = (
    "calibration",
    "computed",
    "damping",
    "end_step",
    "error",
    "expert_step",
    "forced",
    "forecast",
    "guidance",
    "max_skips",
    "objective",
    "offload",
    "preset",
    "ratios",
    "retention",
    "rule",
    "safeguard",
    "semantics",
    "speedup",
    "start_step",
    "threshold",
)
"""The keywords of :func:`magpolicy.attach` that a server or a request can set."""
_AIMS = frozenset({"computed", "error", "speedup"})
_RULE = frozenset({"max_skips", "retention", "rule", "threshold"})


def of_server() -> dict[str, Any] | None:
    """The settings of the environment; ``None`` if there are none.

    Raises:
        ArgumentError: they are no JSON object of known keywords.
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
    return checked(VARIABLE, found)


def of_request(server: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What one request goes by: the server's settings, and its own in place of these; ``None``: not by magpolicy.

    Args:
        extra: the ``diffusers_kwargs`` of the request.

    Raises:
        ArgumentError: its own are no mapping of known keywords, or ``False``.
    """
    own = (extra or {}).get(KEY)
    if own is None:
        return None if server is None else dict(server)
    if own is False:
        return None
    asked = checked(f"diffusers_kwargs[{KEY!r}]", own)
    # Another aim takes the place of the server's, and so does the rule; the source (a calibration, a preset) stays.
    other = _AIMS | _RULE if (_AIMS | _RULE) & asked.keys() else frozenset()
    return {key: value for key, value in (server or {}).items() if key not in other} | asked


def checked(where: str, settings: Any) -> dict[str, Any]:
    """``settings`` if they are a mapping of known keywords, else ArgumentError."""
    if not isinstance(settings, Mapping):
        raise ArgumentError(f'{where}={settings!r} must be an object of settings, as {{"speedup": 2.0}}')
    for name in settings:
        if name not in KEYWORDS:
            near = get_close_matches(str(name), KEYWORDS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(KEYWORDS)}"
            raise ArgumentError(f"{where}: {name!r} is no setting; {mend}")
    return dict(settings)


def wanted() -> bool:
    """Whether the server was started with settings, usable or not."""
    return bool(os.environ.get(VARIABLE, "").strip())
