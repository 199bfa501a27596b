"""What a cache config and a request may say, in the words of :func:`magpolicy.attach`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

import magpolicy
from magpolicy import ArgumentError, AttachRequest
from magpolicy.adapter import RunConfig, closest, resolve, speedup_of

KEY = "magpolicy"
"""Where a request's ``extra_args`` hold its own settings."""
_NOT_HERE = ("target", "reduce", "blocks", "steps", "group")


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


def asked_speed(extra_args: Sequence[Mapping[str, Any] | None]) -> tuple[float | None, ...]:
    """The speed that each request of a batch asks for; ``None``: it asks for none.

    Raises:
        ArgumentError: a setting that requests cannot have, or a value that it cannot have.
    """
    return tuple(_speed((given or {}).get(KEY)) for given in extra_args)


def _speed(given: Any) -> float | None:
    if given is None:
        return None
    if not isinstance(given, Mapping) or set(given) != {"speedup"}:
        raise ArgumentError(f"extra_args[{KEY!r}]={given!r} must hold speedup and no other; try {{'speedup': 2.0}}")
    return speedup_of(given["speedup"])


class Speeds:
    """What runs go by whose requests ask for a speed of their own.

    Args:
        request: the settings of all others.
    """

    def __init__(self, request: AttachRequest) -> None:
        self.request = request
        self._by_speed: dict[float, AttachRequest] = {}

    def request_for(self, asked: Sequence[float | None]) -> AttachRequest:
        """The settings of a batch. Its requests are computed together: of different speeds the least one counts.

        One that asks for none counts with the speed in the settings; if they say none, they decide about the whole batch.
        """
        if self.request.calibrate or not any(asked):
            return self.request
        usual_name = getattr(getattr(self.request.config, "target", None), "speedup", None)
        usual = None if usual_name is None else speedup_of(usual_name)
        speeds = [usual if speed is None else speed for speed in asked]
        if None in speeds:
            return self.request
        speed = min(speed for speed in speeds if speed is not None)
        if speed == usual:
            return self.request
        if speed not in self._by_speed:  # kept, so that its plans are made once
            self._by_speed[speed] = evolve(self.request, config=_at(self.request.config, speed))
        return self._by_speed[speed]


def _at(config: Any, speed: float) -> RunConfig:
    target = getattr(config, "target", None)
    if target is None:  # the rule, or a schedule: what it was made from serves for a plan too, if it is no schedule
        source = None if isinstance(config.given, magpolicy.Schedule) else config.given
        return resolve(source, speedup=speed).for_any_run()
    planned: RunConfig = evolve(config, target=evolve(target, speedup=speed, computed=None, error=None), last={})
    return planned
