"""Runs the fenced blocks of a page of the documentation. It imports Sybil and nothing else that magpolicy does not bring.

Each page runs in one namespace and one temporary folder, from top to bottom. By language of the fenced block:

- ``python`` is executed. If it prints, a ``text`` block must follow, and hold what was printed.
- ``text`` is the output of the ``python`` block before it; a line ``...`` stands for any lines, ``...`` in a line for any text.
- ``console`` holds commands after ``$`` and, where it is worth showing, what they print; they run in processes of their own.
- ``py`` with ``title="path"`` is a part of that file of this repository, word for word.
- ``json`` and ``toml`` with ``title="name"`` are written to a file of that name, for the blocks that follow.

The languages in ``NOT_RUN`` are not executed, for the reason given there; any other language is an error. What is quoted but
not run is an indented block.

As a program, ``python page_runner.py PAGE`` runs one page in the current folder.
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from sybil import Region, Sybil

ROOT = Path(__file__).parents[2]
NOT_RUN = {
    "sh": "installs packages, or runs the demo and the tests by make: the tests' own caller does that, and the demo has tests",
    "py": "needs downloaded weights or a model of your own: the diffusers adapter's tests run the same on tiny ones",
    "toml": "without a title: a piece of somebody's pyproject.toml, nothing to run",
}
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
if "PYTHONPATH" in ENVIRONMENT:  # the commands run in another folder
    ENVIRONMENT["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, ENVIRONMENT["PYTHONPATH"].split(os.pathsep)))
FENCE = re.compile(r"^```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(page: Path) -> None:
    """Run the blocks of ``page`` in the current folder; raises where a block fails or prints something else than is shown."""
    document = Sybil([fenced_blocks]).parse(page)
    for example in document.examples():
        example.evaluate()
    assert not document.namespace.get("_printed"), "the last block prints something that the page does not show"


def fenced_blocks(document):
    for match in FENCE.finditer(document.text):
        yield Region(match.start(), match.end(), match.groupdict(), evaluate)


def evaluate(example):
    language, options, source = (example.parsed[key] for key in ("language", "options", "source"))
    title = re.search(r'title="([^"]+)"', options)
    if language == "python":
        run_python(example, source)
    elif language == "text":
        compare(source, example.namespace.pop("_printed", ""))
    elif language == "console":
        run_console(source)
    elif language == "py" and title:
        assert source in (ROOT / title[1]).read_text(encoding="utf-8"), f"line {example.line}: {title[1]} has other words"
    elif language in ("json", "toml") and title:
        Path(title[1]).write_text(source, encoding="utf-8")
    else:
        assert language in NOT_RUN, f"line {example.line}: a block of language {language!r}; see this module's docstring"


def run_python(example, source):
    assert not example.namespace.get("_printed"), "the block before prints something that the page does not show"
    code = compile("\n" * example.line + source, example.path, "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, example.namespace)
    example.namespace["_printed"] = printed.getvalue()


def run_console(source):
    command, shown = None, []
    for line in [*source.splitlines(), "$ true"]:
        if not line.startswith("$ "):
            shown.append(line)
            continue
        if command is not None:
            run_command(command, "\n".join(shown))
        command, shown = line[2:], []


def run_command(command, shown):
    words = command.split("  #")[0]
    assert words.startswith("magpolicy"), f"{command!r} is not ours to run; use a sh block"
    done = subprocess.run(
        f'"{sys.executable}" -m {words}',
        shell=True,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed, printed
    assert done.returncode == 0 or "Error" in shown, f"{command}: exit code {done.returncode}\n{printed}"
    if shown.strip():
        compare(shown, printed)


def compare(shown, printed):
    def plain(text):
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"

    checker = doctest.OutputChecker()
    assert checker.check_output(plain(shown), plain(printed), doctest.ELLIPSIS), f"shown:\n{shown}\nprinted:\n{printed}"


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
