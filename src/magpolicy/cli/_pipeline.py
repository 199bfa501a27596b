"""What commands that run a pipeline of diffusers have in common: which one, and what it is to generate."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from magpolicy._checks import MAX_STEPS
from magpolicy._errors import PresetError, require
from magpolicy.cli import _output
from magpolicy.files._writing import writable

_LOADING = ("dtype", "device", "offload", "trust_remote_code")


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


_STEPS = click.IntRange(2, MAX_STEPS)
_OPTIONS = (
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="What to generate; one sample for each."),
    click.option("--negative-prompt", metavar="TEXT", help="What not to generate."),
    click.option("--guidance", "guidance_scale", type=float, metavar="S", help="Guidance scale; the pipeline's by default."),
    click.option("--height", type=click.IntRange(1), metavar="PX", help="Height; the pipeline's by default."),
    click.option("--width", type=click.IntRange(1), metavar="PX", help="Width; the pipeline's by default."),
    click.option(
        "--frames", "num_frames", type=click.IntRange(1), metavar="N", help="Frames of a video; the pipeline's by default."
    ),
    click.option(
        "--set", "more", multiple=True, callback=_assignments, metavar="NAME=VALUE", help="Any other argument of the pipeline."
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the noise of the first sample."
    ),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Data type of its weights."),
    click.option("--device", metavar="NAME", help="Device that it runs on; by default the accelerator, if there is one."),
    click.option("--offload", is_flag=True, help="Keep parts of the pipeline in main memory while they are not used."),
    click.option("--trust-remote-code", is_flag=True, help="Run the code that comes with the weights, if there is any."),
)


def output(what: str, *endings: str, required: bool = True) -> Callable[[Any], Any]:
    """The option ``--output``, checked before anything is loaded."""

    def checked(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is None:
            return None
        if path.suffix.lower() not in endings:
            raise click.BadParameter(f"{path} must end in {' or '.join(endings)}")
        try:
            writable(path, "output")
        except PresetError as error:
            raise click.BadParameter(str(error)) from error
        return path

    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--output", "-o", type=kind, required=required, metavar="FILE", callback=checked, help=what)


def pipeline(command: Callable[..., None]) -> Callable[..., None]:
    """Options for a pipeline and its calls; ``command`` is given a function that loads it, in place of them.

    That function returns the pipeline, and the arguments of a call for each prompt. Its argument is the output type of a call.
    """
    return click.option("--steps", type=_STEPS, required=True, metavar="N", help="Steps of the run.")(_with_options(command))


def pipeline_at_its_own_length(command: Callable[..., None]) -> Callable[..., None]:
    """The same, but ``--steps`` may be left out."""
    return click.option("--steps", type=_STEPS, metavar="N", help="Steps of a run; the pipeline's by default.")(
        _with_options(command)
    )


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def with_pipeline(source: str, steps: int | None, prompts: tuple[str, ...], more: dict[str, Any], **rest: Any) -> None:
        measure = require("magpolicy_diffusers._calibrate", "diffusers")
        loading = {name: rest.pop(name) for name in _LOADING}
        seed = rest["seed"]
        options = {name: rest.pop(name) for name in ("negative_prompt", "height", "width", "num_frames")}
        options["guidance_scale"] = rest["guidance_scale"]

        def load(output_type: str = "latent") -> tuple[Any, list[dict[str, Any]]]:
            pipe = measure.load(source, **loading, progress=_output.on_terminal())
            return pipe, measure.calls(pipe, prompts, steps, seed=seed, options=options | more, output_type=output_type)

        command(load=load, steps=steps, **rest)

    for option in reversed(_OPTIONS):
        with_pipeline = option(with_pipeline)
    return click.argument("source", metavar="REPO_OR_PATH", shell_complete=_folders)(with_pipeline)


def _folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def stopped(why: BaseException) -> click.Abort:
    """What ends a command that the user stopped, said first."""
    click.echo(f"Stopped: {str(why) or 'nothing is written'}", err=True)
    return click.Abort()
