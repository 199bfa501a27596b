"""Unknown arguments of the public functions: the error says which was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from magpolicy import _checks
from magpolicy._errors import UnknownArgumentError

P = ParamSpec("P")
R = TypeVar("R")
ELSEWHERE = {
    "num_inference_steps": "steps",
    "num_steps": "steps",
    "magcache_thresh": "threshold",
    "magcache_K": "max_skips",
    "max_skip_steps": "max_skips",
    "K": "max_skips",
    "retention_ratio": "retention",
    "mag_ratios": "ratios",
    "speed": "speedup",
    "name": "preset",
    "timesteps": "sigmas",
    "guidance_scale": "guidance",
}
"""What other implementations of the rule, and diffusers, call an argument."""


def suggests(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which says what was meant where it has no argument of that name."""
    parameters = inspect.signature(function).parameters
    by_place = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    by_name = [name for name in parameters if name not in by_place]
    shown = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := next((name for name in kwargs if name not in parameters), None):
            raise UnknownArgumentError(f"{unknown}= is no argument of {shown}; {_meant(unknown, by_name)}")
        if len(args) > len(by_place):
            value = args[len(by_place)]
            given = _checks._short(value)
            likely = "speedup" if isinstance(value, (int, float)) and not isinstance(value, bool) else "preset"
            name = likely if likely in by_name else by_name[0]
            alone = " and ".join(place for place in by_place if place != "self")
            raise UnknownArgumentError(f"{shown} takes {alone} alone without a name, not {given}; try {name}={given}")
        return function(*args, **kwargs)

    return called


def _meant(name: str, known: Sequence[str]) -> str:
    said = ELSEWHERE.get(name)
    hint = f"did you mean {said}?" if said in known else _checks.meant(name, known, 1).strip()
    return hint or f"it has {', '.join(known)}"
