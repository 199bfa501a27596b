"""``refine``: let real runs of a diffusers pipeline decide between schedules."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import click

import magpolicy
from magpolicy._errors import MagPolicyError, RunError, require
from magpolicy.cli import _output, _pipeline
from magpolicy.cli._params import Command, NumberList, Source, SpeedList, examples
from magpolicy.files._writing import write_whole


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy refine black-forest-labs/FLUX.1-dev flux.json --steps 28 --prompt fox --speedup 2 -o best.json",
        "magpolicy refine ./my-model mine.json --steps 50 --prompt cat --prompt street --speedup 2,3 --runs 60 -o best.json",
    ),
)
@_pipeline.pipeline
@click.argument("calibration", shell_complete=Source().shell_complete)
@click.option(
    "--speedup",
    type=SpeedList(),
    metavar="X,X,...",
    help="Evaluations per computed one, at least; numbers or quality, balanced, fast.",
)
@click.option("--computed", type=NumberList(int), metavar="N,N,...", help="Or the number of computed steps.")
@click.option(
    "--runs", type=click.IntRange(1), default=40, show_default=True, metavar="N", help="Runs allowed for all speeds together."
)
@click.option("--max-skips", "-K", type=int, metavar="K", help="How many steps in a row may be skipped, at most.")
@_pipeline.output("File for the schedule, as JSON; for several speeds a list of schedules.", ".json")
def refine(
    load: Any, calibration: str, steps: int, seed: int, guidance_scale: float | None, output: Path, runs: int, **settings: Any
) -> None:
    """Find the schedule that does best when it is really run.

    Loads the pipeline of a repo id or folder, runs it in full once for each prompt, and then by schedules planned from
    CALIBRATION (a file of `magpolicy calibrate`, or a name). The one whose latents end nearest to the full run's is
    written, and improved before by moving single steps, as far as --runs allows. `magpolicy compare` and
    Schedule.from_dict read it. Nothing is written when it is stopped or fails.
    """
    if (settings["speedup"] is None) == (settings["computed"] is None):
        raise click.UsageError("--speedup and --computed: give one of them; try --speedup 2")
    two = len(magpolicy.preset(calibration).curve.streams) == 2  # a distilled model's scale is no guidance
    settings["guidance"] = guidance_scale if two else None
    made = 0

    @functools.cache
    def trial() -> Any:
        """Loaded when first needed: what is wrong with the targets is said before."""
        pipe, calls = load()
        samples = [((), {k: v for k, v in call.items() if k != "generator"}, seed + i) for i, call in enumerate(calls)]
        return require("magpolicy_diffusers._trial", "diffusers").trial_of(pipe, samples)

    def on_run(number: int, allowed: int, schedule: magpolicy.Schedule, error: float) -> None:
        nonlocal made
        made = number
        _output.say_strip(f"run {number} of {allowed}  {schedule.strip}  {error:.3g}")

    try:
        found = magpolicy.refine(calibration, lambda s: trial()(s), steps=steps, runs=runs, progress=on_run, **settings)
    except MagPolicyError:
        raise
    except KeyboardInterrupt:
        raise _pipeline.stopped(KeyboardInterrupt(f"{made} of {runs} runs were made, and nothing is written")) from None
    except Exception as fault:  # whatever a pipeline may say
        raise RunError(f"run {made + 1} failed, and nothing is written: {type(fault).__name__}: {fault}") from fault
    schedules = [schedule.to_dict() for schedule in found.schedules]
    write_whole(output, (json.dumps(schedules if len(schedules) > 1 else schedules[0], indent=1) + "\n").encode())
    for schedule, error in zip(found.schedules, found.errors, strict=True):
        _output.say_strip(f"{schedule}  mean squared error {error:.3g}")
