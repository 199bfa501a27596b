"""``comfyui``: the node pack in a ComfyUI folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

import magpolicy
from magpolicy._errors import require
from magpolicy.cli import _output
from magpolicy.cli._params import Command, examples

_NEEDED = ("torch", "cattrs")
PATH = click.argument("path", type=click.Path(path_type=Path), metavar="PATH")


@click.group(
    epilog=examples(
        "magpolicy comfyui install ~/ComfyUI",
        "magpolicy comfyui status ~/ComfyUI",
        "magpolicy comfyui uninstall ~/ComfyUI",
    )
)
def comfyui() -> None:
    """Put magpolicy's nodes into a ComfyUI, and take them out again.

    PATH is ComfyUI's folder, the one with main.py and custom_nodes. Run this with the Python that runs ComfyUI; the nodes
    are those of the installed package, so updating the package updates them.
    """


@comfyui.command(cls=Command, epilog=examples("magpolicy comfyui install ~/ComfyUI"))
@PATH
def install(path: Path) -> None:
    """Write a small loader into custom_nodes. Doing it twice does no harm."""
    place, changed = _steps().install(path)
    click.echo(f"{'installed' if changed else 'already installed'}: {place.loader}")
    if changed:
        click.echo("Restart ComfyUI; the nodes are in the category MagCache.")
    for line in _remarks(place):
        click.echo(line, err=True)


@comfyui.command(cls=Command, epilog=examples("magpolicy comfyui uninstall ~/ComfyUI"))
@PATH
def uninstall(path: Path) -> None:
    """Remove the loader. The package stays: pip uninstall magpolicy removes that."""
    place, changed = _steps().uninstall(path)
    click.echo(f"{'removed' if changed else 'nothing to remove'}: {place.loader}")
    for clone in place.clones:
        click.echo(f"A clone stays: {clone}; delete the folder to remove it.", err=True)


@comfyui.command(
    cls=Command, epilog=examples("magpolicy comfyui status ~/ComfyUI", "magpolicy comfyui status ~/ComfyUI --json")
)
@click.argument("path", type=click.Path(path_type=Path), metavar="[PATH]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(path: Path | None, as_json: bool) -> None:
    """Show what is installed, and what is missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    found: dict[str, Any] = {"magpolicy": magpolicy.__version__, "python": sys.executable, "missing": missing}
    remarks: list[str] = []
    if path is not None:
        place = _steps().look(path)
        found |= {
            "loader": str(place.loader) if place.installed else None,
            "state": place.state,
            "clones": list(map(str, place.clones)),
            "origin": list(map(str, place.origin)),
        }
        remarks = [*filter(None, [place.remark]), *_remarks(place)]
    if as_json:
        _output.say_json(found)
        return
    _output.say_fields(found.items())
    for line in remarks:
        click.echo(line, err=True)


def _steps() -> Any:
    return require("magpolicy_comfyui._install", "comfyui")


def _remarks(place: Any) -> Iterable[str]:
    if place.environment is not None:
        yield (
            f"This ComfyUI has a Python of its own. If it runs with that, install there: "
            f'"{place.environment}" -m pip install "magpolicy[comfyui]"'
        )
    for folder in place.origin:
        yield (
            f"{folder.name} is here too, with nodes of the same ids: which of them a workflow gets is left to ComfyUI. Remove "
            f"that folder, or use the nodes named (magpolicy)."
        )
