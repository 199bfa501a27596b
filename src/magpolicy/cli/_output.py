"""How results are shown: coloured on a terminal, plain whole lines anywhere else, or JSON."""

from __future__ import annotations

import functools
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from magpolicy._errors import printable
from magpolicy.schedule._schedule import COMPUTE, SKIP

NOTHING = "-"


def prepare() -> None:
    """Make sure there is somewhere to write, and that the strip can be written there whatever the locale says."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (closed by the caller's shell)
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            (COMPUTE + SKIP).encode(stream.encoding)
        except UnicodeEncodeError:
            stream.reconfigure(encoding="utf-8")


def on_terminal() -> bool:
    """Whether somebody is looking. FORCE_COLOR and its like don't count: what is piped stays plain."""
    return sys.stdout.isatty()


@functools.cache
def console() -> Console:
    """Where text goes. Lines are left whole: a terminal wraps them itself."""
    return Console(
        force_terminal=on_terminal(), force_jupyter=False, soft_wrap=True, markup=False, emoji=False, highlight=False
    )


def say(text: str = "", style: str = "") -> None:
    """A line of text."""
    console().print(Text(printable(text), style))


def say_json(value: Any) -> None:
    """A JSON value, on one line unless somebody is looking."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2 if on_terminal() else None))


def say_strip(text: str) -> None:
    """A line that holds a strip of computed and skipped steps."""
    line = Text(printable(text))
    line.highlight_regex(f"{COMPUTE}+", "cyan")
    line.highlight_regex(f"{SKIP}+", "bright_black")
    console().print(line)


def say_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> None:
    """Rows below their headers; columns named in ``right`` hold numbers."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = set(right)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    if on_terminal():
        shown = _that_fit(widths, console().width)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for place, header in enumerate(headers[:shown]):
            justify: JustifyMethod = "right" if header in right else "left"
            table.add_column(header, justify=justify, no_wrap=place + 1 < shown, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row[:shown]))
        console().print(table, soft_wrap=False)
        if left := headers[shown:]:
            say(
                f"Not shown for want of room: {', '.join(left)}. A wider terminal shows them, and so does a pipe.",
                "dim",
            )
        return
    for row in [list(headers), *cells]:
        aligned = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        )
        click.echo("  ".join(aligned).rstrip())


_GAP, _LEAST = 2, 20
"""Columns between two of a table, and those that the last one needs to be folded into."""


def _that_fit(widths: Sequence[int], room: int) -> int:
    """How many columns of a table are shown whole, but for the last one, which is folded."""
    for shown in range(len(widths), 1, -1):
        if sum(widths[: shown - 1]) + _GAP * (shown - 1) + min(widths[shown - 1], _LEAST) <= room:
            return shown
    return 1


def say_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Names and values, a pair a line."""
    shown = [(name, _cell(value)) for name, value in fields]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        line = Text(name.ljust(width) + "  ", "bold")
        line.append(value, "not bold")
        console().print(line)


def say_list(title: str, lines: Iterable[str]) -> None:
    """A title and indented lines; nothing if there are none."""
    lines = list(lines)
    if lines:
        say()
        say(title, "bold")
        for line in lines:
            say(f"  {line}")


def _cell(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_cell, value)) or NOTHING
    return " ".join(printable(str(value)).split())  # a name may hold anything
