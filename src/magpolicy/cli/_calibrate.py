"""``calibrate``: measure a diffusers pipeline, once, for plans of any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from magpolicy._checks import MAX_STEPS
from magpolicy._errors import require
from magpolicy.cli import _output
from magpolicy.cli._params import Command, examples

ENDINGS = (".json", ".safetensors")


def _assignments(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise click.BadParameter(f"{text!r} is not of the form NAME=VALUE; try true_cfg_scale=4.0")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@click.command(
    cls=Command,
    epilog=examples(
        'magpolicy calibrate black-forest-labs/FLUX.1-dev --steps 28 --prompt "a fox in the snow" -o flux.json',
        'magpolicy calibrate ./my-model --steps 50 --prompt "a cat" --prompt "a street at night" -o mine.safetensors',
        "magpolicy calibrate Qwen/Qwen-Image --steps 30 --prompt fox --set true_cfg_scale=4.0 -o qwen.json",
    ),
)
@click.argument("source", metavar="REPO_OR_PATH")
@click.option("--steps", type=click.IntRange(2, MAX_STEPS), required=True, metavar="N", help="Steps of the run.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="What to generate; several are merged.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where the calibration goes, .json or .safetensors.",
)
@click.option("--negative-prompt", metavar="TEXT", help="What not to generate.")
@click.option("--guidance", "guidance_scale", type=float, metavar="S", help="Guidance scale; the pipeline's by default.")
@click.option("--height", type=click.IntRange(1), metavar="PX", help="Height; the pipeline's by default.")
@click.option("--width", type=click.IntRange(1), metavar="PX", help="Width; likewise.")
@click.option("--frames", "num_frames", type=click.IntRange(1), metavar="N", help="Frames of a video; likewise.")
@click.option("--set", "more", multiple=True, callback=_assignments, metavar="NAME=VALUE", help="Any other argument.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Noise seed of the first.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="As which it is loaded.")
@click.option("--device", metavar="NAME", help="Where it runs; CUDA if there is one.")
@click.option("--offload", is_flag=True, help="Keep the parts of the pipeline that wait in main memory.")
@click.option("--window", type=click.IntRange(1), metavar="W", help="Steps compared back; by default all of the run, or 100.")
@click.option("--tokens", type=click.IntRange(1), default=2048, show_default=True, metavar="N", help="Tokens looked at.")
@click.option("--name", default="", metavar="NAME", help="Name it, to find it by.")
def calibrate(
    source: str, steps: int, prompts: tuple[str, ...], output: Path, more: dict[str, Any], name: str, **settings: Any
) -> None:
    """Measure a pipeline of diffusers, for plans of any speed.

    Loads the pipeline of a repo id or folder, runs it in full once for each prompt (once without, if none is given), and
    writes one file. `magpolicy plan FILE` and attach(pipe, calibration=FILE, speedup=2.5) use it, for any number of
    steps. Nothing is written when it is stopped or fails; needs the `diffusers` extra, and what the pipeline needs.
    """
    if output.suffix.lower() not in ENDINGS:
        raise click.BadParameter(f"{output} must end in {' or '.join(ENDINGS)}", param_hint="'--output'")
    if not output.resolve().parent.is_dir():
        raise click.BadParameter(f"{output.resolve().parent} is no folder; make it first", param_hint="'--output'")
    measure = require("magpolicy_diffusers._calibrate", "diffusers")
    loading = {key: settings.pop(key) for key in ("dtype", "device", "offload")}
    attaching = {key: settings.pop(key) for key in ("window", "tokens")}
    seed = settings.pop("seed")
    pipe = measure.load(source, **loading, progress=_output.on_terminal())
    calls = measure.calls(pipe, prompts, steps, seed=seed, options=settings | more)

    def on_call(place: int) -> None:
        if len(calls) > 1:
            _output.say(f"prompt {place + 1} of {len(calls)}")

    try:
        found = measure.calibrate(pipe, calls, name=name, on_call=on_call, **attaching)
    except KeyboardInterrupt as stop:
        click.echo(f"Stopped: {str(stop) or 'nothing is written'}", err=True)
        raise click.Abort from None
    found.save(output)
    _output.say(f"{output}: {found.steps} steps, {', '.join(found.streams)}, window {found.window}")
