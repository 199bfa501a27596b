"""``calibrate``: measure a diffusers pipeline, once, for plans of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from magpolicy._errors import require
from magpolicy.catalog._folder import keep, made
from magpolicy.catalog._folder import library as folder
from magpolicy.cli import _output, _pipeline
from magpolicy.cli._params import Command, examples
from magpolicy.files._names import CALIBRATION_ENDINGS


@click.command(
    cls=Command,
    epilog=examples(
        'magpolicy calibrate black-forest-labs/FLUX.1-dev --steps 28 --prompt "a fox in the snow" -o flux.json',
        'magpolicy calibrate ./my-model --steps 50 --prompt "a cat" --prompt "a street at night" -o mine.safetensors',
        'magpolicy calibrate black-forest-labs/FLUX.1-dev --steps 28 --prompt "a fox" --keep',
        "magpolicy calibrate Qwen/Qwen-Image --steps 30 --prompt fox --set true_cfg_scale=4.0 -o qwen.json",
    ),
)
@_pipeline.pipeline_at_its_own_length
@_pipeline.output(f"File for the calibration, {' or '.join(CALIBRATION_ENDINGS)}.", *CALIBRATION_ENDINGS, required=False)
@click.option("--keep", "keeps", is_flag=True, help="Keep it in the library, where attach finds it by the model.")
@click.option(
    "--window",
    type=click.IntRange(1),
    metavar="W",
    help="How many steps back inner products reach; by default all of the run, or 100.",
)
@click.option("--tokens", type=click.IntRange(1), default=2048, show_default=True, metavar="N", help="Tokens used, at most.")
@click.option("--name", default="", metavar="NAME", help="Name that it is listed under; one that tells the model by default.")
def calibrate(load: Any, output: Path | None, keeps: bool, window: int | None, tokens: int, name: str, **_: Any) -> None:
    """Measure a pipeline of diffusers, for plans of any speed.

    Loads the pipeline of a repo id or folder, runs it in full once for each prompt (once without, if none is given), and
    writes one file, or keeps it in your library with --keep. From then on attach(pipe) plans from it, for any number of
    steps; attach(pipe, calibration=FILE) and `magpolicy plan FILE` take a file. Nothing is written when it is stopped or
    fails; needs the `diffusers` extra, and what the pipeline needs.
    """
    if output is None and not keeps:
        raise click.UsageError("where is it to go? give --keep, or --output FILE, or both")
    if keeps:
        made(folder())  # said now, not after the run
    pipe, calls = load()
    measure = require("magpolicy_diffusers._calibrate", "diffusers")

    def on_call(place: int) -> None:
        if len(calls) > 1:
            _output.say(f"prompt {place + 1} of {len(calls)}")

    try:
        found = measure.calibrate(pipe, calls, name=name, on_call=on_call, window=window, tokens=tokens)
    except KeyboardInterrupt as stop:
        raise _pipeline.stopped(stop) from None
    written = [] if output is None else [output]
    for file in written:
        found.save(file)
    if keeps:
        written.append(keep(found))
    for file in written:
        _output.say(f"{file}: {found.steps} steps, {', '.join(found.streams)}, window {found.window}")
