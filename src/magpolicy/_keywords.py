"""Unknown arguments of the public functions: the error says which was meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from magpolicy import _checks
from magpolicy._errors import ArgumentError

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


class UnknownArgumentError(ArgumentError, TypeError):
    """A function has no argument of that name, or takes it by its name alone."""

    __module__ = "magpolicy"


def suggests(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which says what was meant where it has no argument of that name."""
    parameters = inspect.signature(function).parameters
    by_place = [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    by_name = [name for name in parameters if name not in by_place]

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := next((name for name in kwargs if name not in parameters), None):
            raise UnknownArgumentError(f"{unknown}= is no argument of {function.__name__}; {_meant(unknown, by_name)}")
        if len(args) > len(by_place):
            given = _checks._short(args[len(by_place)])
            name = "preset" if "preset" in by_name else by_name[0]
            raise UnknownArgumentError(
                f"{function.__name__} takes {' and '.join(by_place)} alone without a name, and {given} is given so; "
                f"try {name}={given}"
            )
        return function(*args, **kwargs)

    return called


def _meant(name: str, known: Sequence[str]) -> str:
    said = ELSEWHERE.get(name)
    close = [said] if said in known else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}=?" if close else f"it has {', '.join(known)}"
