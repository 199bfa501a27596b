"""``library``: the calibrations and presets that the user kept, and what runs left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from magpolicy._errors import PresetError
from magpolicy.catalog._contributed import CONTRIBUTION, LICENCES, contributed, problems_of
from magpolicy.catalog._entries import LibraryEntry, entries, entry, forget
from magpolicy.catalog._exchange import give_out, read_from, take_in
from magpolicy.catalog._folder import library as folder
from magpolicy.catalog._identity import ModelIdentity
from magpolicy.catalog._learned import date_of
from magpolicy.catalog._presets import Preset
from magpolicy.cli import _output
from magpolicy.cli._lists import say_preset
from magpolicy.cli._params import Command, _ParamType, examples
from magpolicy.files._names import JSON as JSON_FILE
from magpolicy.files._names import ending_of, file_name
from magpolicy.planning._plan import plan

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
FILE = click.Path(path_type=Path)


class Place(_ParamType):
    """A file or an address; checked where it is read."""

    name = "file_or_url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Name(_ParamType):
    """The name of something in the library; checked where it is used."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(one.name) for one in entries() if one.name.startswith(incomplete)]


@click.group(
    epilog=examples(
        "magpolicy library list",
        "magpolicy library show FLUX.1-dev-3fa2c1",
        "magpolicy library export FLUX.1-dev-3fa2c1 -o flux.json",
        "magpolicy library import flux.json --name flux",
        "magpolicy library contribute flux -o flux.json --by 'A. Person' --licence CC0-1.0",
        "magpolicy library check flux.json",
        "magpolicy library forget flux",
    )
)
def library() -> None:
    """Your own calibrations and presets: those you kept, and what runs left.

    attach(pipe) finds them by the model, and all commands by name. They lie in the folder $MAGPOLICY_HOME, by default
    magpolicy where the system keeps a user's data.
    """


@library.command("list", cls=Command, epilog=examples("magpolicy library list", "magpolicy library list --json"))
@JSON
def list_(as_json: bool) -> None:
    """List what is in the library, also files that cannot be read."""
    found = entries()
    if as_json:
        _output.say_json([_as_dict(one) for one in found])
        return
    if not found:
        _output.say(f"{folder()} is empty; magpolicy.keep(handle.calibration) or `magpolicy calibrate --keep` fill it.")
        return
    rows = ((one.name, _kind(one), *_about(one)) for one in found)
    _output.say_table(
        ("name", "kind", "model", "repo", "streams", "steps", "samples", "learned"), rows, right=("steps", "samples")
    )
    _output.say_list("cannot be read", (one.problem for one in found if one.problem))


@library.command(cls=Command, epilog=examples("magpolicy library show FLUX.1-dev-3fa2c1"))
@click.argument("name", type=Name())
@JSON
def show(name: str, as_json: bool) -> None:
    """Show one: its model, how it was made, and its ratios."""
    one = entry(name)
    if as_json:
        _output.say_json(_as_dict(one) | {"provenance": {} if one.preset is None else dict(one.preset.context)})
        return
    if one.preset is None:
        raise PresetError(one.problem)
    say_preset(one.preset)


@library.command("forget", cls=Command, epilog=examples("magpolicy library forget FLUX.1-dev-3fa2c1"))
@click.argument("names", type=Name(), nargs=-1, required=True, metavar="NAME...")
def forget_(names: tuple[str, ...]) -> None:
    """Remove calibrations or presets from the library."""
    for name in dict.fromkeys(names):
        entry(name)  # a name that is wrong is said before any file is removed
    for name in dict.fromkeys(names):
        _output.say(f"removed: {forget(name)}")


@library.command("export", cls=Command, epilog=examples("magpolicy library export FLUX.1-dev-3fa2c1 -o flux.json"))
@click.argument("name", type=Name())
@click.option("--output", "-o", type=FILE, required=True, metavar="PATH", help="File, .json or .safetensors, or a folder.")
def export(name: str, output: Path) -> None:
    """Write one to a file, for another machine or another person. It holds no paths of this one."""
    _output.say(f"written: {give_out(entry(name), output)}")


@library.command("import", cls=Command, epilog=examples("magpolicy library import flux.json https://example.org/wan.json"))
@click.argument("places", type=Place(), nargs=-1, required=True, metavar="FILE_OR_URL...")
@click.option("--name", default="", metavar="NAME", help="Name to keep it under; its own by default.")
@click.option("--replace", is_flag=True, help="Replace what is kept under that name.")
def import_(places: tuple[str, ...], name: str, replace: bool) -> None:
    """Take calibrations or presets into the library, from files or from https addresses."""
    if name and len(places) > 1:
        raise click.UsageError("--name is for one file")
    for place in places:
        _output.say(f"kept: {take_in(place, name, replace=replace)}")


@library.command(
    cls=Command, epilog=examples("magpolicy library contribute flux -o flux.json --by 'A. Person' --licence CC0-1.0")
)
@click.argument("name", type=Name())
@click.option("--output", "-o", type=FILE, required=True, metavar="PATH", help="File, .json, or a folder.")
@click.option("--by", required=True, metavar="TEXT", help="Who gives it: a name, as it shall be shown.")
@click.option("--licence", type=click.Choice(LICENCES), required=True, help="Under which others may use it.")
@click.option("--note", default="", metavar="TEXT", help="A line on how it was measured.")
def contribute(name: str, output: Path, by: str, licence: str, note: str) -> None:
    """Write a calibration to a small file for everybody: what it was measured on, by whom, its licence, and a digest."""
    one = entry(name)
    calibration = None if one.preset is None else one.preset.calibration
    if calibration is None:
        raise PresetError(one.problem or f"{name} is a preset and no calibration; magpolicy library export writes it")
    given = contributed(calibration, by, licence, note)
    file = output / f"{file_name(one.name)}{JSON_FILE}" if output.is_dir() else output
    if ending_of(file) != JSON_FILE:
        raise PresetError(f"{file} must end in {JSON_FILE}, which others can read and compare; try {file.stem}{JSON_FILE}")
    given.save(file)
    _output.say(f"written: {file}")
    if left := sorted(set(calibration.provenance) - set(given.provenance)):
        _output.say(f"left out of it: {', '.join(left)}")
    _say_about(read_from(file))


@library.command(
    cls=Command, epilog=examples("magpolicy library check flux.json", "magpolicy library check https://example.org/flux.json")
)
@click.argument("places", type=Place(), nargs=-1, required=True, metavar="FILE_OR_URL...")
def check(places: tuple[str, ...]) -> None:
    """Check calibrations that are given to others: whether all is there that others need, and nothing was changed."""
    for place in places:
        found = read_from(place)
        if found.calibration is None:
            raise PresetError(f"{place} is a table and no calibration; what a table needs stands in How to add a preset")
        if problems := problems_of(found.calibration):
            raise PresetError(f"{place}: {'; '.join(problems)}")
        _output.say(f"good: {place}")
        _say_about(found)


def _say_about(preset: Preset) -> None:
    """What others will see first: the model, and what a plan of it looks like."""
    calibration = preset.calibration
    assert calibration is not None
    identity, said = ModelIdentity.of(calibration), calibration.provenance[CONTRIBUTION]
    _output.say(f"  {identity.repo}, {identity.model}, {preset.steps} steps, {' and '.join(preset.curve.streams)}")
    _output.say(f"  by {said['by']}, {said['licence']}, {said['digest']}")
    _output.say(f"  at twice the speed: {plan(calibration, speedup=2.0)}")


def _kind(one: LibraryEntry) -> str:
    if one.preset is None:
        return "unreadable"
    return "learned" if one.learned else "preset" if one.preset.calibration is None else "calibration"


def _about(one: LibraryEntry) -> Iterable[Any]:
    """Model, repo, streams, steps, samples and date, as far as they are known."""
    if one.preset is None:
        return [None] * 6
    calibration, identity = one.preset.calibration, one.identity
    measured = (None, None) if calibration is None else (calibration.merged, date_of(calibration)[:16].replace("T", " "))
    return [identity.model, identity.repo, one.preset.curve.streams, one.preset.steps, *measured]


def _as_dict(one: LibraryEntry) -> dict[str, Any]:
    names = ("model", "repo", "streams", "steps", "samples", "learned")
    known = {"name": one.name, "kind": _kind(one), "file": str(one.file), "problem": one.problem or None}
    about = (value or None for value in _about(one))
    return known | dict(zip(names, about, strict=True)) | {"identity": one.identity.to_dict()}
