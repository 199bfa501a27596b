"""What a cache config and a request may say, in the words of :func:`magpolicy.attach`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import magpolicy
from magpolicy import ArgumentError, AttachRequest
from magpolicy.adapter import closest, speedup_of

KEY = "magpolicy"
"""Where a request's ``extra_args`` hold its own settings."""
_NOT_HERE = ("target", "reduce", "blocks", "steps", "group")
OF_A_REQUEST = (
    "speedup", "computed", "rule", "threshold", "max_skips", "retention", "start_step", "end_step", "forecast", "damping",
    "objective", "guidance", "safeguard",
)  # fmt: skip
"""The settings that a request may have: none that names a file."""


def known_settings() -> tuple[str, ...]:
    """The keys of a cache config: the keywords of :func:`magpolicy.attach` that a server can be given."""
    return tuple(name for name in inspect.signature(magpolicy.attach).parameters if name not in _NOT_HERE)


def settings_of(config: Any) -> dict[str, Any]:
    """The keywords of :func:`magpolicy.attach` in a cache config: a mapping, or the engine's object made from one.

    Raises:
        ArgumentError: a key is not known, or belongs to another backend.
    """
    if not isinstance(config, Mapping):
        plain = type(config)()
        names = [name for name in vars(plain) if not name.startswith("_")]
        foreign = [name for name in names if getattr(config, name) != getattr(plain, name)]
        if foreign:
            raise ArgumentError(f"cache_config: {foreign[0]} is for another cache backend; {_instead(foreign[0])}")
        config = config._extra_params
    known = known_settings()
    for name in config:
        if name not in known:
            raise ArgumentError(f"cache_config: {name} is not known; {_instead(name)}")
    return dict(config)


def _instead(name: str) -> str:
    near = closest(name.removeprefix("mag_"), known_settings(), 1)
    return f"try {near[0]}" if near else "leave it out; try speedup, for example 2.0"


Asked = dict[str, Any] | Literal[False] | None
"""What one request asks for: settings, ``False`` (compute every step), or ``None`` (nothing)."""


def asked_of(extra_args: Sequence[Mapping[str, Any] | None]) -> list[Asked]:
    """What each request of a batch asks for.

    Raises:
        ArgumentError: it is no mapping of settings that a run may have, nor ``False``.
    """
    return [_asked((given or {}).get(KEY)) for given in extra_args]


def _asked(given: Any) -> Asked:
    if given is None or given is False:
        return given
    if not isinstance(given, Mapping):
        raise ArgumentError(f"extra_args[{KEY!r}]={given!r} must hold settings, or be False; try {{'speedup': 2.0}}")
    for name in given:
        if name not in OF_A_REQUEST:
            near = closest(str(name), OF_A_REQUEST, 1)
            mend = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(OF_A_REQUEST)}"
            raise ArgumentError(f"extra_args[{KEY!r}]: {name!r} is no setting of a request; {mend}")
    if given.get("speedup") is not None:
        speedup_of(given["speedup"])  # complains
    return dict(given)


def for_batch(asked: Sequence[Asked], usual: AttachRequest) -> tuple[Asked, str]:
    """What a batch goes by, ``None`` for the settings of all, and a remark. Its requests are computed together: of different
    speeds the least one counts, and a request that is to compute has its way.

    One that asks for no speed counts with that of the settings. Where the settings of a run are more than its speed, and
    differ, or some have no speed, the settings of all decide.
    """
    if not asked or usual.calibrate or all(each is None for each in asked):
        return None, ""
    if any(each is False for each in asked):
        return False, ""
    if all(each == asked[0] for each in asked):
        return asked[0], ""
    if all(each is None or not each.keys() - {"speedup"} for each in asked if each is not False):
        common = getattr(getattr(usual.config, "target", None), "speedup", None)
        named = [common if not isinstance(each, dict) else each.get("speedup", common) for each in asked]
        if None in named:
            return None, ""
        return {"speedup": min(map(speedup_of, named))}, ""
    return None, "requests of different settings came in one batch, which goes by the settings of the server"
