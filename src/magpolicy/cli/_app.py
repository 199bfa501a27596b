"""The program: its commands, and what the user sees when something goes wrong."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence

import click

import magpolicy
from magpolicy.cli import _calibrate, _comfyui, _demo, _evaluate, _library, _lists, _output, _plan, _preview, _refine, _try
from magpolicy.cli._params import examples


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "magpolicy simulate flux.1-dev --steps 20",
        "magpolicy sweep flux.1-dev --steps 20 --limit 10",
        "magpolicy plan flux.1-dev --steps 20 --speedup 2",
        "magpolicy presets --family wan",
        "magpolicy demo",
    ),
)
@click.version_option(magpolicy.__version__, prog_name="magpolicy", message="%(prog)s %(version)s")
def program() -> None:
    """Preview which steps of a diffusion transformer a magnitude policy computes, and which it skips.

    Output into a pipe or file is plain text; most commands also print JSON with --json.
    """


for command in (
    _preview.simulate,
    _preview.sweep,
    _plan.plan,
    _plan.compare,
    _lists.presets,
    _lists.semantics,
    _lists.plugins,
    _calibrate.calibrate,
    _refine.refine,
    _library.library,
    _try.try_,
    _evaluate.evaluate,
    _comfyui.comfyui,
    _demo.demo,
):
    program.add_command(command)


def run(args: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    _output.prepare()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = program.main(args, prog_name="magpolicy", standalone_mode=False)
            sys.stdout.flush()
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except click.Abort:
            return 130
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # otherwise the reader has seen enough
                click.echo(f"Error: {error}", err=True)
            with contextlib.suppress(OSError):  # what is left in the buffer goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"Warning: {message}", err=True)
