"""What a run decides by, as digests that equal settings have in every process: ranks that share a model compare them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from magpolicy._version import __version__
from magpolicy.run._session import Session

_WORDS = frozenset({"source", "provenance", "name", "aliases", "context", "decisions", "modelled"})
"""Attributes that say where something comes from, or follow from others; nothing is decided by them."""


def decides_by(session: Session) -> dict[str, tuple[str, str]]:
    """Part by part what a run that has begun decides by: a digest, and the same in words.

    Runs with equal digests decide alike at every step, as long as they see the same.

    >>> import magpolicy
    >>> with magpolicy.Session(None, steps=8, speedup=2.0) as session:
    ...     _, words = decides_by(session)["steps"]
    >>> words
    '8 steps'
    """
    config, schedule, levels = session.config, session.schedule, session.sigmas
    first = session._first
    steps = f"{session.steps} steps" + (f" from step {first}" if first else "")
    shown = "not known" if levels is None else f"{levels[0]:.4g} to {levels[-1]:.4g}"
    guard = session._guard
    settings = ", ".join([config.source or "every step computes", *_told(config), *_told(getattr(config, "target", None))])
    if guard is not None:
        settings += f", safeguard={guard.margin}"
    return {
        "the version of magpolicy": (_digest(__version__), __version__),
        "steps": (_digest([session.steps, first]), steps),
        "noise levels": (_digest(levels), shown),
        "settings": (_digest([config, None if guard is None else attrs.evolve(guard, request=None)]), settings),
        "the plan": (_digest(schedule), "none" if schedule is None else str(schedule)),
    }


def _told(settings: Any) -> list[str]:
    """Settings that are plain values, each as a keyword."""
    fields = attrs.fields(type(settings)) if attrs.has(type(settings)) else ()
    told = ((field.name, getattr(settings, field.name)) for field in fields if field.eq and field.name not in _WORDS)
    return [f"{name}={value}" for name, value in told if isinstance(value, str | int | float) and not isinstance(value, bool)]


def _digest(value: Any) -> str:
    """Sixteen hexadecimal digits. Numbers count to single precision: what another processor has computed is the same."""
    found = hashlib.sha256()
    for part in _bytes(value):
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:16]


def _bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, float | np.floating | np.ndarray):
        array = np.asarray(value, dtype=np.float32)
        yield repr(array.shape).encode()
        yield array.tobytes()
    elif value is None or isinstance(value, str | int | bool | enum.Enum):
        yield repr(value).encode()
    elif attrs.has(type(value)):
        yield type(value).__name__.encode()
        for field in attrs.fields(type(value)):
            if field.eq and field.name not in _WORDS:
                yield field.name.encode()
                yield from _bytes(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield repr(key).encode()
            yield from _bytes(value[key])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for item in value:
            yield from _bytes(item)
    else:
        yield type(value).__name__.encode()
