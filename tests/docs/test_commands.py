"""Commands that pages show have the options that they need, and only such as there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

click = pytest.importorskip("click", reason="the cli extra is not installed")

from magpolicy.cli._app import program  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "adr")]
NAMES = "|".join(program.commands)
# On a line of its own, or within a sentence with what it is about; `magpolicy calibrate --keep` is a mention.
ALONE, WITHIN = (
    rf"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?magpolicy ((?:{NAMES})\b.*)$",
    rf"`magpolicy ((?:{NAMES}) [^-`][^`]*)`",
)
SHOWN = re.compile(f"{ALONE}|{WITHIN}", re.MULTILINE)
COMMANDS = sorted({(page.name, found[1] or found[2]) for page in PAGES for found in SHOWN.finditer(page.read_text("utf-8"))})


def test_the_reference_lists_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`magpolicy ([a-z]+)`\]\(#\1\) \|", page, re.MULTILINE)) == sorted(program.commands)


def test_there_are_some() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{words[:40]}" for page, words in COMMANDS])
def test_the_command_is_understood(page: str, words: str) -> None:
    command, arguments = program, shlex.split(words, comments=True)
    while isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if not arguments:
        return  # the command's name alone
    try:
        command.make_context(command.name, arguments)
    except (click.MissingParameter, click.NoSuchOption) as error:
        pytest.fail(f"{page}: magpolicy {words}: {error.format_message()}")
    except click.UsageError:
        pass  # files that are not there
    except click.exceptions.Exit:
        pass  # --help, --version
