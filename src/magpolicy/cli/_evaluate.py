"""``evaluate``: how near cached runs come to full ones, from the pictures or videos that both wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from magpolicy._errors import require
from magpolicy.cli import _output
from magpolicy.cli._params import Command, examples
from magpolicy.files._reading import bytes_of, json_of

_NAMES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "clip_score": "CLIP score",
    "image_reward": "ImageReward",
    "vbench": "VBench",
}
_MAX_BYTES = 10_000_000  # of a file of prompts
_LOWER = ("lpips",)  # the smaller the nearer


def _prompts(ctx: click.Context, param: click.Parameter, path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        found = json_of(bytes_of(path, _MAX_BYTES))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise click.BadParameter(f'{path} must map file names to prompts; try {{"cat.png": "a cat"}}')
    return found


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy evaluate runs/full runs/balanced",
        "magpolicy evaluate runs/full runs/fast --prompts prompts.json --json > fast.json",
    ),
)
@click.argument("full", metavar="FULL_DIR", type=click.Path(path_type=Path))
@click.argument("cached", metavar="CACHED_DIR", type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=_prompts,
    help="JSON file that maps file names to prompts, for CLIP score and ImageReward.",
)
@click.option("--clip", metavar="REPO_OR_PATH", help="CLIP model of the CLIP score; openai/clip-vit-base-patch16 by default.")
@click.option("--device", metavar="NAME", help="Device that it runs on; by default the accelerator, if there is one.")
@click.option("--files", "each", is_flag=True, help="List each file too.")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def evaluate(
    full: Path, cached: Path, prompts: dict[str, str], clip: str | None, device: str | None, each: bool, as_json: bool
) -> None:
    """Measure how near cached runs come to full ones.

    Compares the pictures or videos of FULL_DIR with those of the same name in CACHED_DIR: PSNR, SSIM and LPIPS, frame by
    frame, averaged over frames and then over files. CLIP score, ImageReward and, for videos, VBench judge both folders
    where they are installed. What has no figure says why. Needs the `evaluate` extra.
    """
    measure = require("magpolicy_torch.pictures._evaluate", "evaluate")

    def on_file(place: int, count: int, name: str) -> None:
        if _output.on_terminal() and not as_json:
            click.echo(f"\r\033[K{place} of {count}  {name}", nl=False, err=True)

    given = {"clip": clip} if clip else {}
    try:
        found = measure.evaluate(full, cached, prompts=prompts, device=device, on_file=on_file, **given)
    finally:
        if _output.on_terminal() and not as_json:
            click.echo("\r\033[K", nl=False, err=True)
    if as_json:
        _output.say_json(_as_json(found))
        return
    _say(found, each)


def _as_json(found: Any) -> dict[str, Any]:
    files = {name: _figures(one) | {"frames": one.frames} for name, one in found.files.items()}
    judged = {name: {"full": full, "cached": cached} for name, (full, cached) in found.judged.items()}
    return {"mean": _figures(found.mean), "judged": judged, "missing": dict(found.missing), "files": files}


def _figures(similarity: Any) -> dict[str, float | None]:
    return {name: getattr(similarity, name) for name in ("psnr", "ssim", "lpips")}


def _say(found: Any, each: bool) -> None:
    mean = found.mean
    frames = f", {mean.frames} frames" if mean.frames > len(found.files) else ""
    _output.say(f"{len(found.files)} file{'s' if len(found.files) > 1 else ''}{frames}")
    rows = []
    for name, value in _figures(mean).items():
        if value is not None:
            worst = (max if name in _LOWER else min)(found.files, key=lambda file: getattr(found.files[file], name))
            rows.append((_NAMES[name], value_of(name, value), value_of(name, getattr(found.files[worst], name)), worst))
    _output.say_table(("metric", "mean", "worst", "file"), rows, right=("mean", "worst"))
    if each:
        _output.say()
        names = [name for name, value in _figures(mean).items() if value is not None]
        files = [(file, *(value_of(n, getattr(one, n)) for n in names)) for file, one in found.files.items()]
        _output.say_table(("file", *(_NAMES[name] for name in names)), files, right=[_NAMES[name] for name in names])
    if found.judged:
        _output.say()
        judged = [
            (_NAMES.get(n, n.replace("vbench_", "VBench ").replace("_", " ")), f"{full:.3f}", f"{cached:.3f}")
            for n, (full, cached) in found.judged.items()
        ]
        _output.say_table(("judged by", "full", "cached"), judged, right=("full", "cached"))
    _output.say_list("without a figure", (f"{_NAMES.get(name, name)}: {why}" for name, why in found.missing.items()))


def value_of(name: str, value: float) -> str:
    """A figure as it is shown."""
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"
