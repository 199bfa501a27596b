"""How arguments are read: sources, lists, ranges; and what becomes of an error in them."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from magpolicy import presets, semantics_names
from magpolicy._errors import ArgumentError, MagPolicyError, MissingExtraError
from magpolicy.files._names import names_a_file
from magpolicy.files._reading import json_of
from magpolicy.planning._target import SPEEDS

MAX_SETTINGS = 100_000  # ten times what a sweep does in about a second
MAX_INPUT = 4_000_000  # bytes; as much as a preset file may have

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic since click 8.4 only
    _ParamType = click.ParamType


class Mistake(click.ClickException):
    """A user's mistake, told without repeating the usage."""

    exit_code = 2


class Command(click.Command):
    """A command in which magpolicy's errors become one line on stderr and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _elsewhere(ctx, error) or error from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MagPolicyError as error:
            raise _failure(ctx, error) from error


def _elsewhere(ctx: click.Context, error: click.NoSuchOption) -> click.UsageError | None:
    """The same, saying which other command has the option; ``None``: none has."""
    program = ctx.find_root().command
    others = program.commands if isinstance(program, click.Group) else {}
    having = [name for name, other in others.items() if any(error.option_name in param.opts for param in other.params)]
    if not having:
        return None
    return click.UsageError(f"{ctx.info_name} has no {error.option_name}; `magpolicy {having[0]}` has", ctx=ctx)


def _failure(ctx: click.Context, error: MagPolicyError) -> click.ClickException:
    text = " ".join(str(error).split())
    cause = error.__cause__
    if isinstance(error, MissingExtraError) and cause is not None:
        text += f" ({cause})"
    kind = Mistake if isinstance(error, ArgumentError) else click.ClickException
    return kind(_as_options(ctx, text))


def _as_options(ctx: click.Context, text: str) -> str:
    """A message about the argument ``max_skips=-1`` as one about the option ``--max-skips=-1``."""
    known = {param.name: param.opts[0] for param in ctx.command.params if param.name and param.opts[0].startswith("--")}
    options = {n: option for name, option in known.items() for n in (name, name.removesuffix("s"))}  # --thresholds too
    if re.split(r"\W", text, maxsplit=1)[0] not in options:
        return text
    names = "|".join(map(re.escape, options))
    return re.sub(rf"\b({names})\b(?==)", lambda match: options[match[1]], text)


def examples(*lines: str) -> str:
    """An epilog with examples, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class Source(_ParamType):
    """A preset's name, alias or file; ratios written out; or ``-`` for ratios on standard input."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            return _read_ratios()
        return _ratios(value) if _is_list(value) else value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name) for name in presets() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *names]  # a shell looks for files where no name fits


class Semantics(_ParamType):
    """The name of semantics; checked where it is used."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in semantics_names() if name.startswith(incomplete)]


def _is_list(text: str) -> bool:
    if re.fullmatch(r"[-+.\deE]*\d", text):
        return True
    return "," in text and not names_a_file(text)


def _ratios(text: str) -> list[float]:
    try:
        return [float(word) for word in re.split(r"[,\s]+", text.strip(" ,\t\r\n")) if word]
    except ValueError as error:
        raise click.UsageError(f"SOURCE: {error}; ratios are numbers, e.g. 1,1.02,0.99") from None


def _read_ratios() -> Any:
    """Numbers from standard input, or a JSON list of them, or a JSON object of lists by stream."""
    try:
        raw = sys.stdin.buffer.read(MAX_INPUT + 1) if sys.stdin else b""
        if len(raw) > MAX_INPUT:
            raise ValueError(f"more than {MAX_INPUT} bytes")
        text = raw.decode("utf-8-sig")
        return json_of(text) if text.lstrip().startswith(("[", "{")) else _ratios(text)
    except ValueError as error:
        raise click.UsageError(f"SOURCE: standard input holds no ratios: {error}") from error


class NumberList(_ParamType):
    """``1,2,5``, and where ranges make sense ``0.02:0.3:0.02`` (both ends included; a step left out is 1)."""

    def __init__(self, kind: Callable[[Any], int | float], *, ranges: bool = False) -> None:
        self.kind, self.ranges = kind, ranges
        self.name = "list or a:b:step" if ranges else "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = [number for word in value.split(",") if word.strip() for number in self._numbers(word.strip())]
        except (ValueError, InvalidOperation):
            found = []
        if not found:
            example = ("1:6 or 1,2,4" if self.kind is int else "0.02:0.3:0.02 or 0.06,0.12") if self.ranges else "1,2,5"
            whole = "whole " if self.kind is int else ""
            self.fail(f"{value!r} is not a list of {whole}numbers; try {example}", param, ctx)
        return tuple(found)

    def _numbers(self, word: str) -> Iterator[int | float]:
        if not (self.ranges and ":" in word):
            yield self.kind(word)
            return
        ends = [Decimal(part) for part in word.split(":")]
        first, last, step = ends if len(ends) == 3 else (*ends, Decimal(1))
        count = (last - first) / step
        if not 0 <= count < MAX_SETTINGS or step <= 0:
            raise ValueError(word)
        for i in range(int(count) + 1):
            number = first + i * step
            if self.kind is int and number != int(number):
                raise ValueError(word)
            yield self.kind(number)


class Levels(NumberList):
    """The noise levels of a run, which fall; sampling in the other direction skips nothing."""

    def __init__(self) -> None:
        super().__init__(float)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        for place, (before, after) in enumerate(itertools.pairwise(found), 1):
            if after > before:
                self.fail(f"level {place}, {after:g}, is above {before:g} before it; give them from noise down", param, ctx)
        return found


class Speed(_ParamType):
    """A speedup: a number, or a name that planning knows."""

    name = "speedup"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return float(value)
        except ValueError:
            return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in SPEEDS if name.startswith(incomplete)]


class SpeedList(_ParamType):
    """``2,3`` or ``quality,fast``: speedups, each a number or a name that planning knows."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        found = tuple(Speed().convert(word.strip(), param, ctx) for word in value.split(",") if word.strip())
        if not found:
            self.fail(f"{value!r} names no speed; try 2,3 or quality,balanced,fast", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{speed.value}") for speed in Speed().shell_complete(ctx, param, begun)]


class Part(_ParamType):
    """``A:B``, the positions from A up to, not including, B."""

    name = "a:b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", value)
        if match is None:
            self.fail(f"{value!r} is not of the form A:B; try 8:28 for all but the first 8 of 28 steps", param, ctx)
        return int(match[1]), int(match[2])
