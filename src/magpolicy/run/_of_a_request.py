"""What one request to a server may ask for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from magpolicy._checks import closest
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
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{where}={given!r} must be an object of settings, as {{'speedup': 2.0}}, or false")
    for name in given:
        if name not in OF_A_REQUEST:
            near = closest(str(name), OF_A_REQUEST, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(OF_A_REQUEST)}"
            raise ArgumentError(f"{where}: {name!r} is no setting of a request; {mend}")
    if given.get("speedup") is not None:
        speedup_of(given["speedup"])  # complains
    return dict(given)
