"""The demo: the same digits in full, by the published rule, and by a plan at the same cost, side by side in one picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

import magpolicy
import torch
from magpolicy.adapter import require
from magpolicy_demo import model as demo
from torch import Tensor

GUIDANCE = 2.0
DIGITS = 10
BRIGHTER = 4  # differences in the picture: as they are, one would hardly see them
# Chosen on this model: of the settings a sweep gave for 12 of 28 computed steps, these kept the picture best.
THRESHOLD, MAX_SKIPS, RETENTION = 0.20, 2, 0.15


@frozen
class Row:
    """One row of the picture, compared with the full one."""

    name: str
    images: NDArray[np.float32]
    seconds: float
    report: Any = None
    """What ran; ``None`` for the full row."""
    psnr: float = float("inf")
    ssim: float = 1.0

    def __str__(self) -> str:
        if self.report is None:
            return f"{self.name:5} {self.seconds:.2f} s"
        near = f"PSNR {self.psnr:.1f} dB, SSIM {self.ssim:.3f}"
        return f"{self.name:5} {self.report.schedule}  {self.seconds:.2f} s  {near}"


def guided(model: Any, handle: Any = None) -> demo.Denoiser:
    """The denoiser with classifier-free guidance: two evaluations a step, each its own stream."""

    def evaluate(stream: str, tokens: Tensor, sigma: float, labels: Tensor) -> Tensor:
        named: AbstractContextManager[Any] = nullcontext() if handle is None else handle.stream(stream)
        with named:
            return demo.velocity(model, tokens, torch.full((len(tokens),), sigma), labels)

    def denoise(tokens: Tensor, sigma: float, labels: Tensor) -> Tensor:
        cond = evaluate("cond", tokens, sigma, labels)
        uncond = evaluate("uncond", tokens, sigma, torch.full_like(labels, demo.NO_CLASS))
        return uncond + GUIDANCE * (cond - uncond)

    return denoise


def noise_for(seed: int, count: int) -> Tensor:
    """Starting noise of ``count`` images, ``(count, 49, 16)``."""
    return torch.randn(count, demo.GRID**2, demo.CHANNELS, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def calibrate(model: Any, steps: int, seed: int) -> magpolicy.Calibration:
    """What one sample in full says of the model."""
    sigmas = demo.sigmas_for(steps)
    label = torch.tensor([seed % DIGITS])
    with magpolicy.attach(model, calibrate=True) as handle:
        with handle.run(sigmas=sigmas):
            demo.euler(guided(model, handle), noise_for(seed + 1, 1), sigmas, label)
        calibration: magpolicy.Calibration = handle.calibration
    return calibration


@torch.inference_mode()
def generate(model: Any, steps: int, seed: int, handle: Any = None) -> tuple[NDArray[np.float32], float]:
    """Ten digits as ``(10, 28, 28)`` in [0, 1], and the seconds of the denoising loop."""
    noise, labels, sigmas = noise_for(seed, DIGITS), torch.arange(DIGITS), demo.sigmas_for(steps)
    run: AbstractContextManager[Any] = nullcontext() if handle is None else handle.run(sigmas=sigmas)
    started = time.perf_counter()
    with run:
        tokens = demo.euler(guided(model, handle), noise, sigmas, labels)
    seconds = time.perf_counter() - started
    return (demo.unpatchify(tokens).clamp(-1, 1) / 2 + 0.5).numpy(), seconds


def best_of(repeats: int, make: Callable[[], tuple[NDArray[np.float32], float]]) -> tuple[NDArray[np.float32], float]:
    """The (same) images and the fastest time of several runs, so that a busy machine doesn't decide the figure."""
    runs = [make() for _ in range(repeats)]
    return runs[0][0], min(seconds for _, seconds in runs)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """One PNG: every row, and below each but the first its difference from the first, brightened, black where there is none."""
    image = require("PIL.Image", "demo")
    strips = [np.concatenate(list(rows[0].images), axis=1)]
    gap = np.ones((2, strips[0].shape[1]), np.float32) * 0.35
    for row in rows[1:]:
        difference = np.concatenate(list(np.abs(row.images - rows[0].images)), axis=1)
        strips += [gap, np.concatenate(list(row.images), axis=1), (BRIGHTER * difference).clip(0, 1)]
    picture = image.fromarray((np.concatenate(strips) * 255).round().astype(np.uint8))
    picture.resize((picture.width * 4, picture.height * 4), image.Resampling.NEAREST).save(path)


def compare(model: Any, ways: Mapping[str, Mapping[str, Any]], *, steps: int, seed: int, repeats: int = 3) -> dict[str, Row]:
    """Generate in full and in every way (arguments of ``attach``), from the same noise."""
    metrics = require("skimage.metrics", "demo")
    full, seconds = best_of(repeats, lambda: generate(model, steps, seed))
    rows = {"full": Row("full", full, seconds)}
    for name, settings in ways.items():
        with magpolicy.attach(model, **settings) as handle:
            images, seconds = best_of(repeats, lambda handle=handle: generate(model, steps, seed, handle))
            report = handle.report
        near = [metrics.structural_similarity(a, b, data_range=1.0) for a, b in zip(full, images, strict=True)]
        psnr = metrics.peak_signal_noise_ratio(full, images, data_range=1.0)
        rows[name] = Row(name, images, seconds, report, float(psnr), float(np.mean(near)))
    return rows


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
    """Calibrate on one sample, generate the three rows, write the picture and print what happened to ``console`` (rich)."""
    require("skimage.metrics", "demo")
    settings: dict[str, Any] = {
        "threshold": THRESHOLD if threshold is None else threshold,
        "max_skips": MAX_SKIPS if max_skips is None else max_skips,
        "retention": RETENTION if retention is None else retention,
    }
    say = print if console is None else console.print
    working = _progress(console)
    with working("loading the model"):
        model = demo.load()
        generate(model, 2, seed)  # the first calls of a process are slower; no row should pay for them
    with working("calibrating on one sample"):
        calibration = calibrate(model, steps, seed)
    ruled = magpolicy.simulate(calibration, **settings)
    planned = magpolicy.plan(calibration, speedup=ruled.speedup)
    ways: dict[str, dict[str, Any]] = {"rule": {"calibration": calibration, **settings}, "plan": {"schedule": planned}}
    with working(f"generating {DIGITS} digits in full, by the rule and by the plan"):
        rows = compare(model, ways, steps=steps, seed=seed)
    draw(output, list(rows.values()))
    for row in rows.values():
        say(str(row))
    same = [rows["rule"].report.schedule == ruled, rows["plan"].report.schedule == planned]
    say("what ran is what was simulated" if all(same) else "not as simulated, please report this")
    say(f"picture (full; rule and its difference, {BRIGHTER} times as bright; plan and its difference): {output.resolve()}")


def _progress(console: Any) -> Callable[[str], AbstractContextManager[Any]]:
    if console is None or not console.is_terminal:
        return lambda text: nullcontext()
    return lambda text: console.status(text)  # type: ignore[no-any-return]
