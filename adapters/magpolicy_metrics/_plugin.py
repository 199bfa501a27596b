"""The entry point: what magpolicy's plugin manager loads. It counts if the environment asks for it, and else does nothing."""

from __future__ import annotations

import os

VARIABLE = "MAGPOLICY_METRICS"


class Idle:
    """A plugin without hooks."""


def chosen() -> object:
    """What :data:`VARIABLE` names: for processes whose start is not one's own, such as the workers of a serving engine."""
    word = os.environ.get(VARIABLE, "").strip().lower()
    if word in ("", "0"):
        return Idle()
    from magpolicy import ArgumentError
    from magpolicy_metrics._start import MADE

    if word not in MADE:
        raise ArgumentError(f"{VARIABLE}={word!r} is not known; use one of {', '.join(map(repr, MADE))}")
    return MADE[word](None)


plugin = chosen()
