"""``demo``: a small trained model in full, by the rule, and by plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from magpolicy._checks import MAX_STEPS
from magpolicy._errors import require
from magpolicy.cli import _output
from magpolicy.cli._params import Command, examples


@click.command(
    cls=Command,
    epilog=examples("magpolicy demo", "magpolicy demo --steps 50 --threshold 0.1 -K 4 -o digits.png"),
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default="magpolicy-demo.png",
    show_default=True,
    metavar="FILE",
    help="File for the picture.",
)
@click.option("--steps", type=click.IntRange(1, MAX_STEPS), default=28, show_default=True, metavar="N", help="Steps of a run.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=3, show_default=True, help="Seed of the noise.")
@click.option("--threshold", type=click.FloatRange(min=0), metavar="X", help="Bound on the accumulated error of the rule.")
@click.option(
    "--max-skips", "-K", type=click.IntRange(min=0), metavar="K", help="How many steps in a row may be skipped, at most."
)
@click.option("--retention", type=click.FloatRange(0, 1), metavar="R", help="Leading share of the run that always computes.")
def demo(output: Path, **settings: Any) -> None:
    """Generate digits in full and in three faster ways, and compare.

    Loads the small trained model that ships with the demo, and generates the same digits in full, by the published rule
    with the settings below, by a plan with nothing prepared, and by a plan after one run in full; the last three compute
    as many steps. Prints the schedules, the times and how close the pictures are, and writes them into one PNG file.
    Takes about a minute on two processor cores; needs the `demo` extra.
    """
    if output.suffix.lower() != ".png":
        raise click.BadParameter(f"{output} must end in .png", param_hint="'--output'")
    if not output.resolve().parent.is_dir():
        raise click.BadParameter(f"{output.resolve().parent} is no folder; make it first", param_hint="'--output'")
    require("magpolicy_demo.demo", "demo").run(output=output, **settings, console=_output.console())
