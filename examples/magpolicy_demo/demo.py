"""The demo: the same digits generated in full and with magpolicy, side by side in one picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

import magpolicy
import torch
from magpolicy._errors import require
from magpolicy_demo import model as demo
from torch import Tensor

GUIDANCE = 2.0
DIGITS = 10
# Chosen on this model: of the settings a sweep gave for 12 of 28 computed steps, these kept the picture best.
THRESHOLD, MAX_SKIPS, RETENTION = 0.20, 2, 0.15


@frozen
class Result:
    """What one comparison gave."""

    schedule: magpolicy.Schedule
    computed: int
    seconds_full: float
    seconds_cached: float
    psnr: float
    ssim: float

    @property
    def speedup(self) -> float:
        return self.seconds_full / self.seconds_cached


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
def calibrate(model: Any, steps: int, seed: int) -> magpolicy.Curve:
    """The model's curve, measured on one sample."""
    sigmas = demo.sigmas_for(steps)
    label = torch.tensor([seed % DIGITS])
    with magpolicy.attach(model, calibrate=True, steps=steps) as handle:
        with handle.run(sigmas=sigmas):
            demo.euler(guided(model, handle), noise_for(seed + 1, 1), sigmas, label)
        curve: magpolicy.Curve = handle.curve
    return curve


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


def draw(path: Path, full: NDArray[np.float32], cached: NDArray[np.float32]) -> None:
    """One PNG: the full row, the cached row, and their absolute difference."""
    image = require("PIL.Image", "demo")
    rows = [np.concatenate(list(row), axis=1) for row in (full, cached, np.abs(full - cached))]
    gap = np.ones((2, rows[0].shape[1]), np.float32) * 0.35
    grid = np.concatenate([rows[0], gap, rows[1], gap, rows[2]])
    picture = image.fromarray((grid * 255).round().astype(np.uint8))
    picture.resize((picture.width * 4, picture.height * 4), image.Resampling.NEAREST).save(path)


def compare(
    model: Any, curve: magpolicy.Curve, settings: dict[str, Any], *, steps: int, seed: int, repeats: int = 3
) -> tuple[Result, NDArray[np.float32], NDArray[np.float32]]:
    """Generate with and without the policy from the same noise."""
    metrics = require("skimage.metrics", "demo")
    full, seconds_full = best_of(repeats, lambda: generate(model, steps, seed))
    with magpolicy.attach(model, curve=curve, **settings) as handle:
        cached, seconds_cached = best_of(repeats, lambda: generate(model, steps, seed, handle))
        report = handle.report
    result = Result(
        schedule=report.schedule,
        computed=report.computed,
        seconds_full=seconds_full,
        seconds_cached=seconds_cached,
        psnr=float(metrics.peak_signal_noise_ratio(full, cached, data_range=1.0)),
        ssim=float(np.mean([metrics.structural_similarity(a, b, data_range=1.0) for a, b in zip(full, cached, strict=True)])),
    )
    return result, full, cached


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
    """Calibrate on one sample, generate both rows, write the picture and print what happened to ``console`` (rich)."""
    require("skimage.metrics", "demo")
    settings = {
        "threshold": THRESHOLD if threshold is None else threshold,
        "max_skips": MAX_SKIPS if max_skips is None else max_skips,
        "retention": RETENTION if retention is None else retention,
    }
    say = print if console is None else console.print
    working = _progress(console)
    with working("loading the model"):
        model = demo.load()
        generate(model, 2, seed)  # the first calls of a process are slower; neither row should pay for them
    with working("calibrating on one sample"):
        curve = calibrate(model, steps, seed)
    predicted = magpolicy.simulate(curve, **settings)
    with working(f"generating {DIGITS} digits, in full and cached"):
        result, full, cached = compare(model, curve, settings, steps=steps, seed=seed)
    draw(output, full, cached)
    say(str(result.schedule))
    same = "as simulated" if result.schedule == predicted else "not as simulated, please report this"
    say(f"computed {result.computed} of {steps} steps ({same}): " + _shown(result.schedule.reasons()))
    say(f"denoising {result.seconds_full:.2f} s in full, {result.seconds_cached:.2f} s cached: {result.speedup:.2f}x")
    say(f"PSNR {result.psnr:.1f} dB, SSIM {result.ssim:.3f} against the full row")
    say(f"picture (full, cached, difference): {output.resolve()}")


def _shown(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _progress(console: Any) -> Callable[[str], AbstractContextManager[Any]]:
    if console is None or not console.is_terminal:
        return lambda text: nullcontext()
    return lambda text: console.status(text)  # type: ignore[no-any-return]
