"""The demo: the same digits in full and three times at the same smaller cost, each a row of one picture.

By the published rule, by a plan of a model that nothing is known of, and by a plan from what one full run taught.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

import magpolicy
import torch
from magpolicy.adapter import require
from magpolicy_demo import pipeline
from magpolicy_torch.adapter import BRIGHTER, GridRow, Similarity, SimilarityMeter, draw_grid

DIGITS = "0123456789"
SPEEDUP = 2.0
# Chosen on this model: of the settings that compute half of 28 steps, these kept the picture best.
THRESHOLD, MAX_SKIPS, RETENTION = 0.14, 2, 0.15
EXPLAINED = {
    "full": ("every step computes",),
    "rule": ("the published rule",),
    "prior": ("attach(pipe, speedup={:.3g})", "nothing prepared"),
    "learned": ("the same,", "after one run in full"),
}


@frozen(eq=False)
class Row:
    """One row of the picture, compared with the full one."""

    name: str
    images: NDArray[np.float32]
    """``(10, 28, 28, 1)`` in [0, 1]."""
    seconds: float
    report: Any = None
    """What ran; ``None`` for the full row."""
    near: Similarity | None = None
    """How near it comes to the full row; ``None`` for that row itself."""

    def __str__(self) -> str:
        if self.report is None or self.near is None:
            return f"{self.name:7} {self.seconds:.2f} s"
        near = f"PSNR {self.near.psnr:.1f} dB, SSIM {self.near.ssim:.4f}"
        return f"{self.name:7} {self.report.schedule}  {self.seconds:.2f} s  {near}"

    def beside(self) -> tuple[str, ...]:
        """What stands beside the row in the picture."""
        if self.report is None or self.near is None:
            return (self.name, *EXPLAINED[self.name])
        computed = f"{self.report.computed} of {self.report.computed + self.report.skipped} steps"
        words = [line.format(self.report.estimated_speedup) for line in EXPLAINED[self.name]]
        return (self.name, *words, f"{computed}, {self.near.psnr:.1f} dB")


def generate(pipe: Any, steps: int, seed: int) -> tuple[NDArray[np.float32], float]:
    """Ten digits as ``(10, 28, 28, 1)`` in [0, 1], and the seconds of the call."""
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    images = pipe(DIGITS, num_inference_steps=steps, generator=generator, output_type="np").images
    return images, time.perf_counter() - started


def calibrate(pipe: Any, steps: int, seed: int) -> magpolicy.Calibration:
    """What one other sample in full says of the model: the ratios that the rule needs."""
    with magpolicy.attach(pipe, calibrate=True) as handle:
        generator = torch.Generator().manual_seed(seed + 1)
        pipe(DIGITS[seed % 10], num_inference_steps=steps, generator=generator, output_type="latent")
        calibration: magpolicy.Calibration = handle.calibration
    return evolve(calibration, name="one sample")


def best_of(repeats: int, make: Callable[[], tuple[NDArray[np.float32], float]]) -> tuple[NDArray[np.float32], float]:
    """The last images and the fastest time of several runs, so that a busy machine doesn't decide the figure."""
    runs = [make() for _ in range(repeats)]
    return runs[-1][0], min(seconds for _, seconds in runs)


class Comparison:
    """Rows from the same noise, one after the other, the full one first."""

    def __init__(self, pipe: Any, *, steps: int, seed: int, repeats: int = 3) -> None:
        self._pipe, self._repeats = pipe, repeats
        self._generate = lambda: generate(pipe, steps, seed)
        self._meter = SimilarityMeter("cpu", perceptual=False)
        images, seconds = best_of(repeats, self._generate)
        self.rows = {"full": Row("full", images, seconds)}

    def add(self, name: str, *, first: int = 0, **settings: Any) -> Row:
        """A row of runs with these settings of ``attach``, after ``first`` runs that are not shown."""
        with magpolicy.attach(self._pipe, **settings) as handle:
            for _ in range(first):
                self._generate()
            images, seconds = best_of(self._repeats, self._generate)
            report = handle.report
        near = self._meter.compare(self.rows["full"].images, images, name)
        self.rows[name] = row = Row(name, images, seconds, report, near)
        return row


def compare(pipe: Any, calibration: magpolicy.Calibration, rule: dict[str, Any], speedup: float, **how: Any) -> dict[str, Row]:
    """The four rows."""
    made = Comparison(pipe, **how)
    made.add("rule", calibration=calibration, **rule)
    made.add("prior", speedup=speedup)
    made.add("learned", calibration=calibration, speedup=speedup)
    return made.rows


@contextmanager
def nothing_kept() -> Iterator[None]:
    """The user's folder is another one inside, and stays as it was."""
    before = os.environ.get("MAGPOLICY_HOME")
    with tempfile.TemporaryDirectory(prefix="magpolicy-demo-") as folder:
        os.environ["MAGPOLICY_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["MAGPOLICY_HOME"]
            else:
                os.environ["MAGPOLICY_HOME"] = before


def draw(path: Path, rows: Sequence[Row]) -> None:
    """The picture: each row, and below each but the first its difference from the first."""
    draw_grid(path, [GridRow(row.beside(), list(row.images)) for row in rows], "demo")


def run(
    *,
    output: Path = Path("magpolicy-demo.png"),
    steps: int = 28,
    seed: int = 3,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    console: Any = None,
) -> None:
    """Generate the four rows, write the picture and print what happened to ``console`` (rich)."""
    require("torchmetrics", "demo")
    rule: dict[str, Any] = {
        "threshold": THRESHOLD if threshold is None else threshold,
        "max_skips": MAX_SKIPS if max_skips is None else max_skips,
        "retention": RETENTION if retention is None else retention,
    }
    say = print if console is None else console.print
    working = _progress(console)
    with nothing_kept():
        with working("loading the model"):
            pipe = pipeline.load()
            generate(pipe, 2, seed)  # the first calls of a process are slower; no row should pay for them
        with working("measuring one sample, for the rule's ratios"):
            calibration = calibrate(pipe, steps, seed)
        ruled = magpolicy.simulate(calibration, **rule)
        with working(f"generating {len(DIGITS)} digits in full and in three ways"):
            rows = compare(pipe, calibration, rule, ruled.speedup, steps=steps, seed=seed)
    draw(output, list(rows.values()))
    for row in rows.values():
        say(str(row))
    say()
    for name, row in rows.items():
        by = f": {row.report.source}" if row.report is not None else ""
        say(f"{name:7} {', '.join(EXPLAINED[name]).replace(',,', ',').format(ruled.speedup)}{by}")
    same = rows["rule"].report.schedule == ruled
    say("the rule ran as it was simulated" if same else "the rule did not run as it was simulated, please report this")
    say(f"picture (each row's difference from the full run below it, {BRIGHTER} times as bright): {output.resolve()}")


def _progress(console: Any) -> Callable[[str], AbstractContextManager[Any]]:
    if console is None or not console.is_terminal:
        return lambda text: nullcontext()
    return lambda text: console.status(text)  # type: ignore[no-any-return]
