"""``simulate`` and ``sweep``: what settings do, without a model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import magpolicy
from magpolicy._checks import MAX_STEPS
from magpolicy._errors import ArgumentError
from magpolicy.cli import _output
from magpolicy.cli._params import MAX_SETTINGS, Command, Levels, NumberList, Part, Semantics, Source, examples
from magpolicy.schedule._schedule import COMPUTE, SKIP

SOURCE = click.argument("source", type=Source())
STEPS = click.option(
    "--steps", type=click.IntRange(1, MAX_STEPS), metavar="N", help="Steps of the run; as calibrated by default."
)
SIGMAS = click.option("--sigmas", type=Levels(), metavar="S,S,...", help="Or the noise levels of its evaluations.")
SHIFT = click.option(
    "--shift", type=float, metavar="S", help="Shift of a flow model's scheduler: noise levels for --steps; Wan has 3 to 12."
)


def of_steps_or_levels(command: Callable[..., None]) -> Callable[..., None]:
    """Options for what a command takes as ``steps`` or ``sigmas``: ``--steps`` with ``--shift`` stands for noise levels."""

    @functools.wraps(command)
    def given(*, steps: int | None, sigmas: Sequence[float] | None, shift: float | None, **settings: Any) -> None:
        if shift is not None:
            steps, sigmas = None, _shifted(steps, sigmas, shift)
        command(steps=steps, sigmas=sigmas, **settings)

    return STEPS(SIGMAS(SHIFT(given)))


def _shifted(steps: int | None, sigmas: Sequence[float] | None, shift: float) -> tuple[float, ...]:
    if sigmas is not None:
        raise ArgumentError(f"shift={shift:g} contradicts sigmas, which are shifted already; give one of them")
    if steps is None:
        raise ArgumentError(f"shift={shift:g} needs the number of steps; try --steps 20")
    return magpolicy.flow_sigmas(steps, shift=shift)


SEMANTICS = click.option(
    "--semantics", type=Semantics(), metavar="NAME", help="Implementation whose rule decides; `magpolicy semantics` lists them."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy simulate flux.1-dev --steps 20",
        "magpolicy simulate wan2.1-t2v-1.3b --steps 20 --shift 5",
        "magpolicy simulate wan2.1-t2v-1.3b --semantics official/wan2.1",
        "magpolicy simulate 1,1.02,0.99,0.98 --threshold 0.06 -K 2 --retention 0.2",
        "magpolicy simulate my-model.json --json | jq .mask",
    ),
)
@SOURCE
@of_steps_or_levels
@click.option("--threshold", type=float, metavar="X", help="Bound on the accumulated error; a preset brings its own.")
@click.option(
    "--max-skips", "-K", type=int, metavar="K", help="How many steps in a row may be skipped, at most; a preset brings its own."
)
@click.option(
    "--retention",
    type=float,
    metavar="R",
    help="Leading share of the run that always computes, 0 to 1; a preset brings its own.",
)
@click.option("--start-step", type=int, default=0, metavar="N", help="First step that may be skipped.")
@click.option("--end-step", type=int, metavar="N", help="Last step that may be skipped; negative counts from the end.")
@click.option("--forced", type=NumberList(int), metavar="N,N,...", help="Steps that always compute; -1 is the last.")
@SEMANTICS
@click.option(
    "--batched/--separate",
    default=None,
    help="Decide the streams jointly, or each for itself; by default as the semantics say.",
)
@click.option("--expert-step", type=int, metavar="N", help="First step of the second expert of a two-expert model.")
@click.option("--part", type=Part(), metavar="A:B", help="Steps A to B-1 of the run only (image to image, a later stage).")
@JSON
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw it into an image file; needs the `plot` extra.",
)
def simulate(source: Any, as_json: bool, plot: Path | None, **settings: Any) -> None:
    """Show which steps a run computes.

    SOURCE is a preset's name or alias, a .json or .toml preset file, ratios written out (1,1.02,0.99), or - for ratios
    on standard input (numbers, or JSON: a list, or an object with a list for each stream).

    The strip has a block for each step that computes and a dot for each that is skipped.
    """
    schedule = magpolicy.simulate(source, **settings)
    if plot is not None:
        _draw(schedule, plot)
    if as_json:
        _output.say_json(schedule.to_dict())
    else:
        _output.say_strip(str(schedule))
        _say_streams(schedule)
        _output.say(f"  modelled error {schedule.error:.3g}", "dim")
    if plot is not None:
        click.echo(f"picture: {plot.resolve()}", err=as_json)


def _draw(schedule: magpolicy.Schedule, path: Path) -> None:
    try:
        schedule.plot(path)
    except (OSError, ValueError) as error:  # no such folder; no such picture format
        raise click.BadParameter(f"{path}: {error}", param_hint="'--plot'") from error


def _say_streams(schedule: magpolicy.Schedule) -> None:
    """Why, per stream where streams differ; and their strips where these do."""
    if len(set(schedule.decisions)) == 1:
        _output.say(f"  {_reasons(schedule, schedule.streams[0])}", "dim")
        return
    width = max(map(len, schedule.streams))
    for name, mask in zip(schedule.streams, schedule.masks, strict=True):
        strip = f"  {strip_of(mask)}" if len(set(schedule.masks)) > 1 else ""
        _output.say_strip(f"  {name:<{width}}{strip}  {_reasons(schedule, name)}")


def _reasons(schedule: magpolicy.Schedule, stream: str) -> str:
    counts = sorted(schedule.reasons(stream).items(), key=lambda item: item[0] == "reused")  # skips last
    return ", ".join(f"{count} {reason}" for reason, count in counts)


def strip_of(mask: tuple[bool, ...]) -> str:
    """One stream's strip."""
    return "".join(COMPUTE if computes else SKIP for computes in mask)


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy sweep flux.1-dev --steps 20",
        "magpolicy sweep flux --thresholds 0.06:0.24:0.02 --max-skips 1:5 --retentions 0.1,0.2 --all",
        "magpolicy sweep my-model.toml --limit 5 --json",
    ),
)
@SOURCE
@click.option(
    "--thresholds",
    type=NumberList(float, ranges=True),
    default="0.02:0.3:0.02",
    show_default=True,
    metavar="LIST",
    help="Thresholds to try: numbers and ranges a:b:step, separated by commas.",
)
@click.option(
    "--max-skips",
    "-K",
    type=NumberList(int, ranges=True),
    default="1:6",
    show_default=True,
    metavar="LIST",
    help="Values of K to try.",
)
@click.option(
    "--retentions",
    type=NumberList(float, ranges=True),
    default="0.1:0.3:0.1",
    show_default=True,
    metavar="LIST",
    help="Retentions to try.",
)
@STEPS
@SEMANTICS
@click.option(
    "--front/--all",
    default=True,
    show_default=True,
    help="Only rows that no other row beats in both computed steps and modelled error (the default), or every combination.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Print the first N rows only.")
@JSON
def sweep(
    source: Any,
    thresholds: tuple[float, ...],
    max_skips: tuple[int, ...],
    retentions: tuple[float, ...],
    front: bool,
    limit: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Try many settings and show what they give.

    SOURCE is what `magpolicy simulate` takes. The modelled error says what the rule believes, not what a picture shows:
    use it to choose a few settings worth trying on the model.
    """
    count = len(thresholds) * len(max_skips) * len(retentions)
    if count > MAX_SETTINGS:
        raise click.UsageError(f"{count} settings to try, at most {MAX_SETTINGS} are; take wider steps")
    table = magpolicy.sweep(source, thresholds=thresholds, max_skips=max_skips, retentions=retentions, **settings)
    found = table.front() if front else table.rows
    rows = found[:limit]
    if as_json:
        _output.say_json([_as_dict(row) for row in rows])
        return
    headers = ("threshold", "K", "retention", "computed", "speedup", "modelled error")
    _output.say_table(
        headers,
        map(_cells, rows),
        right=headers,
    )
    if _output.on_terminal():
        kind = "on the Pareto front" if front else "tried"
        _output.say(f"{len(rows)} of {len(found)} {kind}, {count} settings in all", "dim")


def _cells(row: magpolicy.SweepRow) -> tuple[Any, ...]:
    gain = (f"{row.computed}/{row.schedule.steps}", f"{row.speedup:.2f}x", f"{row.error:.4f}")
    return row.threshold, row.max_skips, row.retention, *gain


def _as_dict(row: magpolicy.SweepRow) -> dict[str, Any]:
    return {
        "threshold": row.threshold,
        "max_skips": row.max_skips,
        "retention": row.retention,
        "steps": row.schedule.steps,
        "computed": row.computed,
        "speedup": row.speedup if math.isfinite(row.speedup) else None,
        "error": row.error,
    }
