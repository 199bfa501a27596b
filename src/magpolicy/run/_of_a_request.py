"""What one request to a server may ask for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from magpolicy._checks import _short, closest
from magpolicy._errors import ArgumentError
from magpolicy.planning._target import speedup_of

OF_A_REQUEST = (
    "speedup", "computed", "error", "rule", "threshold", "max_skips", "retention", "start_step", "end_step", "forced",
    "forecast", "damping", "objective", "guidance", "safeguard",
)  # fmt: skip
"""The settings that a request may have: none that names a file, which the server would read for a stranger."""


def asked_of(where: str, given: Any) -> dict[str, Any] | Literal[False] | None:
    """What a request asks for: settings of its run, ``False`` (compute every step), or ``None`` (nothing).

    Args:
        where: what the request calls them, for errors.
        given: what stands there.

    Raises:
        ArgumentError: it is no mapping of settings that a request may have, nor ``False``; or its speed is wrong.
    """
    if given is None or given is False:
        return None if given is None else False
    settings = settings_among(where, given, OF_A_REQUEST, "setting of a request")
    if settings.get("speedup") is not None:
        speedup_of(settings["speedup"])  # complains
    return settings


def settings_among(where: str, given: Any, known: Sequence[str], what: str = "setting") -> dict[str, Any]:
    """``given``, which came as JSON, if it is a mapping of known settings.

    Args:
        where: what they are called there, for errors.
        given: what stands there.
        known: names of settings.
        what: what such a name is called.

    Raises:
        ArgumentError: it is none.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{where}={_short(given)} must be an object of settings; try {{'speedup': 2.0}}")
    for name in given:
        if name not in known:
            near = closest(str(name), known, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(known)}"
            raise ArgumentError(f"{where}: {name!r} is no {what}; {mend}")
    return dict(given)
