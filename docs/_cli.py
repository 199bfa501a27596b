"""Writes the tables of options in docs/reference/cli.md from the program: ``python docs/_cli.py``; the tests compare them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from magpolicy.cli._app import program

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEAD = "| option | meaning |\n|---|---|\n"


def row(option: click.Option, context: click.Context) -> str:
    """The line of the table for one option."""
    choices = list(option.type.choices) if isinstance(option.type, click.Choice) else []
    plain = option.type.name.split()[0].upper().replace("INTEGER", "N").replace("CHOICE", "NAME")
    value = "" if option.is_flag else f" {option.metavar or plain}"
    names = sorted(option.opts, key=len, reverse=True) + option.secondary_opts
    meaning = (option.help or "").rstrip(".")
    if choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in choices)
    if option.show_default and not option.is_flag:
        meaning += f"; `{option.get_default(context)}` by default"
    if not re.match("[A-Z]{2}", meaning):
        meaning = meaning[0].lower() + meaning[1:]
    words = re.sub(r"(?<![\w`])(-1)(?![\w`])", r"`\1`", meaning)
    return f"| {', '.join(f'`{name}{value}`' for name in names)} | {words} |\n"


def rows(command: click.Command, name: str, prefix: str = "") -> str:
    """The lines for all options of a command; for those of a group's commands, too, with the command's name first."""
    if isinstance(command, click.Group):
        return "".join(rows(inner, inner_name, f"{inner_name} ") for inner_name, inner in command.commands.items())
    context = click.Context(command, info_name=name)
    options = [p for p in command.params if isinstance(p, click.Option) and p.name != "help"]
    return "".join(row(option, context).replace("| `", f"| `{prefix}", 1) for option in options)


def page(text: str) -> str:
    """``text`` of the page with its tables written anew."""
    for name, command in program.commands.items():
        found = rows(command, name)
        if found and name != "comfyui":  # its commands stand in a table of their own
            table = HEAD + found
            pattern = rf"(^## {name}\n(?:(?!^## ).*\n)*?){re.escape(HEAD)}(?:\|.*\n)*"
            text, count = re.subn(pattern, lambda match, table=table: match[1] + table, text, flags=re.MULTILINE)
            assert count == 1, f"{PAGE}: the section {name} needs one table of options"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
