"""Argument checks: one sentence that names the argument, its value and the mend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

from magpolicy._errors import ArgumentError

MAX_RATIO = 1e6
"""Of the norms of two residuals in a row; published ones lie between 0.3 and 2. Beyond it, products leave what floats hold."""
MAX_LEVEL = 1e9
"""Of noise; the sigmas of a schedule whose last signal is rescaled to nothing reach a few thousand."""
MAX_STEPS = 100_000  # far above any sampler; a list this long is a mistake, not a run


def number(name: str, value: Any, low: float, high: float = math.inf, *, example: str) -> float:
    """``value`` as a float within ``[low, high]``, finite."""
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError("text and switches are no numbers")
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{name}={_short(value)} must be a number; try {example}") from None
    if not math.isfinite(result):
        raise ArgumentError(f"{name}={value!r} must be a finite number; try {example}")
    if not low <= result <= high:
        bounds = f">= {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ArgumentError(f"{name}={value!r} must be {bounds}; try {example}")
    return result


def whole(name: str, value: Any, low: int, high: float = math.inf, *, example: str) -> int:
    """``value`` as an int within ``[low, high]``."""
    if type(value) is int and low <= value <= high:  # a step is checked at every evaluation
        return value
    try:
        result = int(value)
        exact = result == value and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or not low <= result <= high:
        bounds = f">= {low}" if high == math.inf else f"from {low} to {high:g}"
        raise ArgumentError(f"{name}={_short(value)} must be a whole number {bounds}; try {example}")
    return result


def steps(value: Any, *, example: str) -> int:
    """A run's number of steps."""
    return whole("steps", value, 1, MAX_STEPS, example=example)


def ratios(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    """Magnitude ratios: finite, positive floats, at least one."""
    result = _floats(name, values, "one ratio a step")
    if not result:
        raise ArgumentError(f"{name}={_short(values)} must hold at least one ratio; calibrate the model or name a preset")
    if len(result) > MAX_STEPS:
        raise ArgumentError(f"{name} has {len(result)} entries, at most {MAX_STEPS} are read; one ratio a step is meant")
    for index, value in enumerate(result):
        if not (value > 0.0 and math.isfinite(value)):
            raise ArgumentError(f"{name}[{index}]={value} must be a finite ratio > 0; calibrate that step again")
        if not 1 / MAX_RATIO <= value <= MAX_RATIO:
            raise ArgumentError(
                f"{name}[{index}]={value} must be a ratio from {1 / MAX_RATIO:g} to {MAX_RATIO:g}; calibrate that step again"
            )
    return result


def levels(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    """Noise levels of the evaluations, not negative; a trailing 0 (the end of a scheduler's list) is dropped."""
    result = _floats(name, values, "one noise level a step")
    if len(result) > 1 and result[-1] == 0.0:
        result = result[:-1]
    if not result:
        raise ArgumentError(f"{name}={_short(values)} must hold at least one noise level, e.g. the scheduler's sigmas")
    for index, value in enumerate(result):
        if not 0.0 <= value <= MAX_LEVEL:
            raise ArgumentError(f"{name}[{index}]={value} must be a finite noise level >= 0, and at most {MAX_LEVEL:g}")
    return result


def run_levels(steps: int | None, sigmas: Iterable[Any] | None) -> tuple[float, ...] | None:
    """The noise levels that a run is given by; ``None``: it is given by its number of steps, or by nothing."""
    if sigmas is None:
        return None
    found = levels("sigmas", sigmas)
    with_the_end = len(sigmas) if isinstance(sigmas, Sized) else len(found)
    if steps is not None and steps not in (len(found), with_the_end):
        raise ArgumentError(f"steps={steps} contradicts sigmas with {len(found)} levels; give one of them")
    return found


def listed(name: str, values: Any, what: str) -> tuple[Any, ...]:
    """``values`` as a tuple; one value alone is a mistake worth a word."""
    try:
        return tuple(values)
    except TypeError:
        raise ArgumentError(f"{name}={_short(values)} must be a sequence of {what}; try {name}=[{_short(values)}]") from None


def positions(name: str, values: Iterable[Any] | None, steps: int) -> frozenset[int]:
    """Step positions; negative ones count from the end. Positions outside the run are an error."""
    given = () if values is None else listed(name, values, "steps")
    result = [whole(f"{name}[...]", value, -steps, example="-1 for the last step") for value in given]
    for value in result:
        if value >= steps:
            raise ArgumentError(f"{name} holds step {value}, the run has {steps}; use 0 to {steps - 1}, or -1 for the last")
    return frozenset(value % steps for value in result)


def inside(name: str, values: Iterable[Any] | None, steps: int) -> tuple[tuple[int, ...] | None, str]:
    """Those of ``values`` that a run of ``steps`` steps has, and in words which it has not."""
    if values is None:
        return None, ""
    given = [whole(f"{name}[...]", value, -(2**31), example="-1 for the last step") for value in listed(name, values, "steps")]
    outside = [step for step in given if not -steps <= step < steps]
    words = f"{name} holds {', '.join(map(str, outside))}, which a run of {steps} step{'s' * (steps > 1)} has not"
    return tuple([step for step in given if step not in outside]), words if outside else ""


def window(start: Any, end: Any, steps: int) -> tuple[int, int]:
    """First and last step (both inclusive) at which skipping is allowed; a negative end counts from the run's end."""
    first = whole("start_step", start, 0, example="0")
    if end is None:
        return first, steps - 1
    last = whole("end_step", end, -steps, example="-1 for the last step")
    return first, last + steps if last < 0 else last


def part(value: tuple[int, int] | None, length: int) -> tuple[int, int]:
    """First and last-but-one position of part of a run, all of it by default."""
    if value is None:
        return 0, length
    try:
        first, stop = value
    except (TypeError, ValueError):
        raise ArgumentError(f"part={value!r} must be two positions; try part=(0, {length})") from None
    first, stop = whole("part[0]", first, 0, example="0"), whole("part[1]", stop, 1, example=str(length))
    if not first < stop <= length:
        raise ArgumentError(f"part={value!r} must lie within the run's {length} steps, first before last")
    return first, stop


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, choices))}")
    return value


def instance(name: str, value: Any, kind: type, meant: str) -> None:
    """Make sure that ``value`` is of a kind."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{name}={_short(value)} must be {meant}")


def closest(text: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Which of ``known`` may have been meant, the likeliest first; case does not matter."""
    import difflib  # late: few mistakes are made

    by_lower = {name.lower(): name for name in known}
    return [by_lower[name] for name in difflib.get_close_matches(text.lower(), by_lower, n=count)]


def meant(text: str, known: Iterable[str], count: int = 3) -> str:
    """The same as the beginning of a sentence; empty if nothing comes near."""
    close = closest(text, known, count)
    return f"did you mean {', '.join(close)}? " if close else ""


def _floats(name: str, values: Iterable[Any], meant: str) -> tuple[float, ...]:
    try:
        if isinstance(values, str | bytes):
            raise TypeError("text is not a sequence of numbers")
        given = tuple(values)
    except TypeError:
        raise ArgumentError(f"{name}={_short(values)} must be a sequence of numbers, {meant}") from None
    try:
        return tuple(map(float, given))
    except (TypeError, ValueError, OverflowError):
        index, value = next((i, v) for i, v in enumerate(given) if not _is_float(v))
        raise ArgumentError(f"{name}[{index}]={_short(value)} must be a number, one of a sequence: {meant}") from None


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list nested too deep
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
