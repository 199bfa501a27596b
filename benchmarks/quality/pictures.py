"""Pictures and videos at several speeds, beside other methods: ``python -m benchmarks.quality.pictures`` writes docs/pictures.

Every row is run anew from the same noise, and its figures are of this run. Others get settings from the rows that ``python -m
benchmarks.quality`` kept: of all that do at most the work of the speed, those nearest to the full run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from benchmarks.quality import data, methods, report
from benchmarks.quality.measure import Count, counting, psnr, ssim
from benchmarks.quality.methods import Bench
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import COUNTS, hushed, key_of
from benchmarks.quality.sampling import Job, generate
from benchmarks.quality.sweep import KINDS, PEER, Trial, trials
from PIL import Image, ImageDraw, ImageFont

import diffusers
import magpolicy
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "docs/pictures"
SPEEDS = (Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4))
RULES = ("published rule, hold", "diffusers MagCache")  # the same decisions
SHOWN, ZOOM = {"digits": 8, "clothes": 8, "video": 3}, {"digits": 3, "clothes": 3, "video": 4}
BRIGHTER = 4
_GAP, _LABEL, _BACK, _INK = 4, 172, (38, 38, 44), (225, 225, 230)
_FPS, _LOOPS = 3, 4
PLAYER = 'controls loop muted playsinline preload="auto" width="100%"'

INTRODUCTION = """# Pictures

What skipping does to pictures, at 1.5, 2, 3 and 4 times the speed, from the same noise. The models are the small ones of
[the lab](../explanation/quality.md), trained for it. Below each row, of videos beside it, is its difference from the full run,
{brighter} times as bright: black is no difference. Pictures show the first samples; figures are means over all samples of the
same runs.

- **Fewer steps** and **our plans** get no setting but the speed. *Nothing prepared* is what `attach(pipe, speedup=...)` does at
  first; *one run in full* is planned from one run of another noise and prompt.
- **The published rule** and **the best of others** get the best settings of a sweep on these samples, of those that do at most
  the work of the speed (within 2%). So many settings of others were tried: {tried}.
- At 1.5x and 4x the best of others is a weaker comparison than at 2x and 3x. Forecasts by formulas of others were tried at a
  half, two fifths and a third of the work only: at 1.5x they do less work than they may, and at 4x they are missing. On the SD3
  class at 4x hardly any setting of others does so little work, and the one that does fails.
- **Work** is counted in the blocks; it bounds the speed. How near the time comes to it:
  [Speed and memory](../explanation/speed.md).

These models say how methods compare, not how pictures of a large model look: `magpolicy try` shows
[your own pipeline](../how-to/see-what-it-costs.md).
"""


@frozen
class Row:
    """One method at one speed."""

    name: str
    detail: str
    latents: Tensor
    work: float
    """Share of the full run's multiplications in the blocks."""
    psnr: float
    ssim: float

    @property
    def words(self) -> tuple[str, ...]:
        """What stands beside it in the picture."""
        return (self.name, f"{self.work:.0%} of the work", f"{self.psnr:.1f} dB")


@frozen
class Scene:
    """A model's full run, and what is run beside it."""

    bench: Bench
    full: Tensor
    work: Count
    others: Sequence[dict[str, Any]]
    """The kept rows of others."""

    @classmethod
    def of(cls, model: LabModel) -> Scene:
        found = report.load(model.name, "euler")
        if found is None:
            raise FileNotFoundError(f"no rows of {model.name} in {data.CACHE}; run: python -m benchmarks.quality")
        bench = Bench.of(model, count=COUNTS[model.name])
        with counting(bench.network) as work:
            full = generate(bench.job, bench.network)
        others = [row for row in found[1] if KINDS.get(row["method"]) == PEER]
        return cls(bench, full, work, others)

    def rows(self, speed: Fraction) -> Iterator[Row]:
        """Fewer steps, the published rule, the best of others, and a plan, with nothing prepared and after one run in full."""
        bench = self.bench
        steps = int(bench.steps / speed)
        job = bench.job
        yield self._run("fewer steps", f"{steps} steps", Trial("", {}, job=Job(job.model, job.noise, job.labels, steps)))
        yield self._kept("published rule", RULES[:1], speed)
        yield self._kept("", [name for name, kind in KINDS.items() if kind == PEER and name not in RULES], speed)
        streams = {"guidance": bench.model.guidance}
        prior = magpolicy.plan(None, sigmas=job.sigmas, computed=steps)
        own = magpolicy.plan(bench.calibration, computed=steps, **streams)
        for name, schedule in (("plan, nothing prepared", prior), ("plan, one run in full", own)):
            yield self._run(name, schedule.strip, Trial("", {}, lambda schedule=schedule: methods.scheduled(bench, schedule)))  # type: ignore[misc]

    def _kept(self, name: str, of: Sequence[str], speed: Fraction) -> Row:
        """The best of these methods' kept rows that do at most the work of this speed, run anew."""
        within = filter(None, (report.best(list(self.others), method, 1 / float(speed), "fraction_all") for method in of))
        best = max(within, key=lambda row: row["psnr"])
        wanted = Trial(best["method"], best["settings"])
        trial = next(t for t in trials(self.bench) if key_of(t) == key_of(wanted))
        said = ", ".join(f"{key} {value}" for key, value in best["settings"].items())
        return self._run(name or f"best of others: {best['method']}", f"{best['method']}: {said}", trial)

    def _run(self, name: str, detail: str, trial: Trial) -> Row:
        bench, job = self.bench, trial.job or self.bench.job
        with counting(bench.network) as work:
            if trial.make is None:
                latents = generate(job, bench.network)
            else:
                with trial.make() as control:
                    latents = generate(job, bench.network, control)
        share = (work.first + work.others) / (self.work.first + self.work.others)
        return Row(name, detail, latents, share, psnr(bench.model, latents, self.full), ssim(bench.model, latents, self.full))

    def samples(self, latents: Tensor) -> np.ndarray:
        """``(samples, frames, height, width)`` in [0, 1], of those that are shown."""
        frames: np.ndarray = self.bench.model.to_frames(latents).numpy()
        split = frames.reshape(len(latents), -1, *frames.shape[1:])
        return split[: SHOWN[self.bench.model.name]]


def draw(scene: Scene, rows: Sequence[Row]) -> list[Image.Image]:
    """One picture for each frame: the full run, and each row with its difference from it, brightened, below it or beside it."""
    full, words = scene.samples(scene.full), f"difference, {BRIGHTER} times as bright"
    beside = full.shape[1] > 1  # of videos there are few, so that a row has the room
    strips = [(("full run", "100% of the work"), np.concatenate([full, 0 * full]) if beside else full)]
    for row in rows:
        own = scene.samples(row.latents)
        apart = (BRIGHTER * abs(own - full)).clip(0, 1)
        strips += [(row.words, np.concatenate([own, apart]))] if beside else [(row.words, own), ((words,), apart)]
    return [
        _frame([(words, tiles[:, at]) for words, tiles in strips], ZOOM[scene.bench.model.name]) for at in range(full.shape[1])
    ]


def _frame(strips: Sequence[tuple[tuple[str, ...], np.ndarray]], zoom: int) -> Image.Image:
    count, height, width = strips[0][1].shape
    height, width = height * zoom, width * zoom
    size = (_LABEL + count * (width + _GAP) + _GAP, len(strips) * (height + _GAP) + _GAP)
    picture = Image.new("RGB", (size[0] // 2 * 2, size[1] // 2 * 2), _BACK)  # the codec takes no odd sizes
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for place, (words, tiles) in enumerate(strips):
        top = _GAP + place * (height + _GAP)
        pen.multiline_text((8, top + 6), "\n".join(_wrapped(words)), _INK, font, spacing=3)
        for column, tile in enumerate(tiles):
            scaled = Image.fromarray((tile * 255).round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(scaled, (_LABEL + column * (width + _GAP), top))
    return picture


def _wrapped(words: Sequence[str], most: int = 24) -> Iterator[str]:
    for line in words:
        while len(line) > most and " " in line[:most]:
            cut = line[:most].rindex(" ")
            yield line[:cut]
            line = line[cut + 1 :]
        yield line


def save(frames: Sequence[Image.Image], path: Path) -> Path:
    """One frame as WebP; several as a short MP4 that shows them a few times."""
    if len(frames) == 1:
        path = path.with_suffix(".webp")
        frames[0].save(path, quality=60, method=6)
        return path
    import imageio.v3 as imageio

    path = path.with_suffix(".mp4")
    shown = np.stack([np.asarray(frame) for _ in range(_LOOPS) for frame in frames])
    imageio.imwrite(path, shown, plugin="pyav", codec="libx264", fps=_FPS)
    return path


def section(scene: Scene) -> list[str]:
    """The part of the page for one model, and its files."""
    model = scene.bench.model
    lines = [f"## {model.title[0].upper()}{model.title[1:]}", ""]
    for speed in SPEEDS:
        rows = list(scene.rows(speed))
        said = f"{float(speed):g}x"
        path = save(draw(scene, rows), FOLDER / f"{model.name}-{said.replace('.', '-')}")
        best = max(rows, key=lambda row: row.psnr)
        about = f"{model.title}, at {said}: the full run, then " + ", ".join(f"{row.name} {row.psnr:.1f} dB" for row in rows)
        shown = (
            f'<video src="{path.name}" aria-label="{about}" {PLAYER}></video>'
            if path.suffix == ".mp4"
            else f"![{about}]({path.name})"
        )
        table = ["| | work | PSNR, dB | SSIM | settings |", "| --- | --- | --- | --- | --- |"]
        for row in rows:
            figure = f"**{row.psnr:.1f}**" if row is best else f"{row.psnr:.1f}"
            table.append(f"| {row.name} | {row.work:.0%} | {figure} | {row.ssim:.3f} | {_settings(row)} |")
        lines += [f'=== "{said}"', "", *(f"    {line}".rstrip() for line in (shown, "", *table)), ""]
        print(model.name, said, *(f"{row.name}: {row.work:.3f} {row.psnr:.1f};" for row in rows), flush=True)
    return lines


def _settings(row: Row) -> str:
    return f"`{row.detail}`" if set(row.detail) <= set("█·") else row.detail


def part(name: str) -> tuple[list[str], str]:
    """The part of the page for the model of this name, and how many settings of others it had to choose from, in words."""
    torch.set_num_threads(1)
    with hushed():
        scene = Scene.of(MODELS[name])
        return section(scene), f"{len(scene.others)} ({scene.bench.model.title})"


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.quality.pictures", description=__doc__).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as processes:
        parts = list(processes.map(part, MODELS))
    lines = [INTRODUCTION.format(brighter=BRIGHTER, tried=", ".join(tried for _, tried in parts))]
    lines += [line for of_model, _ in parts for line in of_model]
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, magpolicy {magpolicy.__version__}"
    lines += [f"Written by `python -m benchmarks.quality.pictures`, {time.strftime('%Y-%m-%d')}, one thread each, {versions}."]
    (FOLDER / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
