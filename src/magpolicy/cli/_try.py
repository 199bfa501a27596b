"""``try``: a pipeline in full and at several speeds, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from magpolicy._errors import MissingExtraError, require
from magpolicy.cli import _output, _pipeline
from magpolicy.cli._params import Command, SpeedList, examples
from magpolicy.files._writing import write_whole
from magpolicy.planning._target import SPEEDS

_HEADERS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}
_COLUMNS = 10  # pictures in a row at most
_FRAMES = 5  # of each video


@click.command(
    "try",
    cls=Command,
    epilog=examples(
        'magpolicy try black-forest-labs/FLUX.1-dev --prompt "a fox in the snow"',
        'magpolicy try ./my-model --steps 30 --prompt "a cat" --prompt "a street at night" --speedup 1.5,2,4 -o cat',
    ),
)
@_pipeline.pipeline_at_its_own_length
@click.option(
    "--speedup",
    "speeds",
    type=SpeedList(),
    default=",".join(SPEEDS),
    show_default=True,
    metavar="X,X,...",
    help="What to try, names or evaluations per computed one.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    default="magpolicy-try",
    show_default=True,
    metavar="FOLDER",
    help="Folder for the pictures and figures.",
)
@click.option("--no-learn", is_flag=True, help="Measure nothing in the runs, and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def try_(load: Any, speeds: tuple[float | str, ...], output: Path, no_learn: bool, as_json: bool, **_: Any) -> None:
    """Run a pipeline in full and at several speeds, and compare.

    Loads the pipeline of a repo id or folder and generates each prompt in full and at every speed, from the same noise.
    The full run teaches the others, and later ones too. Prints a table, writes the pictures and one picture of all of them
    into a folder, and ends with the line that gives you the speed. Needs the `diffusers` extra, and what the pipeline needs;
    PSNR, SSIM and LPIPS are there with the `evaluate` extra.
    """
    run = require("magpolicy_diffusers._side_by_side", "diffusers")
    pipe, calls = load("np")
    given = [({k: v for k, v in call.items() if k != "generator"}, _seed(call)) for call in calls]
    ways = {_named(speed): {"speedup": speed, "learn": False if no_learn else None} for speed in speeds}
    try:
        with _progress(quiet=as_json) as on_run:
            outcomes = run.side_by_side(pipe, given, ways, teach=not no_learn, on_run=on_run)
            rows, missing = _figures(outcomes)
    except KeyboardInterrupt:
        raise _pipeline.stopped(KeyboardInterrupt()) from None
    output.mkdir(parents=True, exist_ok=True)
    _write(output, outcomes, rows)
    chosen = next((speed for speed in speeds if speed == "balanced"), speeds[0])
    result = {
        "pipeline": type(pipe).__name__,
        "runs": rows,
        "missing": missing,
        "picture": str((output / "grid.png").resolve()),
        "attach": f"magpolicy.attach(pipe, speedup={json.dumps(chosen)})",
    }
    write_whole(output / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    if as_json:
        _output.say_json(result)
        return
    _say(result, outcomes)


def _seed(call: Mapping[str, Any]) -> int:
    return int(call["generator"].initial_seed()) if "generator" in call else 0


def _named(speed: float | str) -> str:
    return speed if isinstance(speed, str) else f"{speed:g}x"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """What is entered for each run: a bar of its steps where somebody is looking."""

    @contextmanager
    def silent(name: str) -> Iterator[Any]:
        yield lambda step, steps: None

    if quiet or not _output.on_terminal():
        yield silent
        return
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_output.console(), transient=True) as bars:

        @contextmanager
        def shown(name: str) -> Iterator[Any]:
            task = bars.add_task(name, total=None)
            yield lambda step, steps: bars.update(task, completed=step, total=steps or None)
            bars.stop_task(task)

        yield shown


def _figures(outcomes: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """For each run what is in the table; and which metrics have no figure, and why."""
    similarity = require("magpolicy_torch.pictures._similarity", "diffusers")
    missing: dict[str, str] = {}
    try:
        meter = similarity.SimilarityMeter("cpu")
    except MissingExtraError as error:
        meter, missing = None, dict.fromkeys(_HEADERS, str(error))
    full = outcomes[0]
    rows = []
    for outcome in outcomes:
        report, near = outcome.report, dict.fromkeys(_HEADERS)
        if report is not None and meter is not None:
            pairs = zip(full.media, outcome.media, strict=True)
            mean = similarity.Similarity.mean([meter.compare(a, b, outcome.name) for a, b in pairs])
            near = {name: getattr(mean, name) for name in _HEADERS}
        rows.append({"run": outcome.name, **_steps_of(outcomes, report), "seconds": outcome.seconds} | near)
        rows[-1]["speedup"] = full.seconds / outcome.seconds
        rows[-1] |= {"by": "", "advice": ""} if report is None else {"by": report.source, "advice": report.advice}
    return rows, missing | (meter.missing if meter is not None else {})


def _steps_of(outcomes: Sequence[Any], report: Any) -> dict[str, int]:
    """How many steps a run had, which the full run does not tell, and how many it computed."""
    steps = next(other.computed + other.skipped for other in (one.report for one in outcomes) if other is not None)
    return {"steps": steps, "computed": steps if report is None else report.computed}


def _write(folder: Path, outcomes: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """The picture of all runs, and each run's own pictures in a folder of its name, for ``magpolicy evaluate``."""
    grid = require("magpolicy_torch.pictures._grid", "diffusers")
    files = require("magpolicy_torch.pictures._files", "diffusers")
    beside = [grid.GridRow(_beside(row), _some(outcome.media)) for outcome, row in zip(outcomes, rows, strict=True)]
    grid.draw_grid(folder / "grid.png", beside)
    for outcome in outcomes:
        own = folder / outcome.name
        own.mkdir(exist_ok=True)
        for place, frames in enumerate(outcome.media):
            files.save(own / f"{place + 1}", frames)


def _beside(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = f"{row['seconds']:.1f} s"
    if row["run"] == "full":
        return row["run"], seconds
    near = f"PSNR {row['psnr']:.1f} dB" if row["psnr"] is not None else ""
    return row["run"], f"{seconds}, {row['speedup']:.2f}x", near


def _some(media: Sequence[Any]) -> list[Any]:
    """Of every picture or video the frames that are drawn, evenly spaced."""
    shown = []
    for frames in media:
        count = min(len(frames), _FRAMES)
        shown += [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    same = [frame for frame in shown if frame.shape == shown[0].shape]
    return same[:_COLUMNS]


def _say(result: Mapping[str, Any], outcomes: Sequence[Any]) -> None:
    rows = result["runs"]
    names = [name for name in _HEADERS if any(row[name] is not None for row in rows)]
    headers = ("run", "computed", "seconds", "speedup", *(_HEADERS[name] for name in names))
    _output.say_table(headers, [_cells(row, names) for row in rows], right=headers[1:])
    for outcome in outcomes:
        if outcome.report is not None and outcome.report.schedule is not None:
            _output.say_strip(f"{outcome.name}: {outcome.report.schedule}")
    for source in dict.fromkeys(row["by"] for row in rows if row["by"]):
        _output.say(f"by {source}")
    for advice in dict.fromkeys(row["advice"] for row in rows if row["advice"]):
        _output.say(f"closer to the full run: {advice}")
    _output.say_list("without a figure", (f"{_HEADERS[name]}: {why}" for name, why in result["missing"].items()))
    _output.say()
    _output.say(f"picture: {result['picture']}")
    _output.say(f"to use it: {result['attach']}", "bold")


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    computed = f"{row['computed']} of {row['steps']}"
    near = [None if row[n] is None else f"{row[n]:.2f}" if n == "psnr" else f"{row[n]:.4f}" for n in names]
    return [row["run"], computed, f"{row['seconds']:.2f}", f"{row['speedup']:.2f}x", *near]
