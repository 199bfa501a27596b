"""What calibrating and learning cost, and what looking at a part of the tokens loses: ``python benchmarks/calibrating.py``.

Cost: a step of the demo model (two evaluations) bare, attached and computing, learning in full, and calibrating, in turns in
one process, so that a busy machine slows all alike; and a whole run, with what is done at its end. Loss: errors and
coefficients from some of the tokens against those from all of them, on one run of a hundred digits, 4900 tokens. Needs the
``demo`` extra.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import contextmanager, nullcontext

import numpy as np

import magpolicy
import torch
from magpolicy_demo import loop, model

STEPS, COUNT = 28, 100


def step_times(network, ways, rounds=8):
    """Seconds of each step of each way, and of each run, the ways in turns."""
    times, runs = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(rounds):
        for name, settings in ways.items():
            attached = nullcontext() if settings is None else magpolicy.attach(network, **settings)
            run = nullcontext if settings is None else lambda: handle.run(steps=STEPS)
            with nothing_known(), attached as handle, timed(runs[name]), run():
                denoise = loop.guided(network, handle)
                tokens, labels = loop.noise_for(0, 10), torch.arange(10)
                for sigma in model.sigmas_for(STEPS)[:-1]:
                    started = time.perf_counter()
                    denoise(tokens, sigma, labels)
                    times[name].append(time.perf_counter() - started)
    return times, runs


@contextmanager
def nothing_known():
    """A user's folder without anything in it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAGPOLICY_HOME"] = folder
        yield


@contextmanager
def timed(seconds):
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


def cost(network) -> None:
    never = {"ratios": [1.0] * STEPS, "threshold": 0.0, "max_skips": 0, "retention": 1.0}
    ways = {
        "alone": None,
        "computing": never,
        "learning": {"speedup": 2.0, "learn": "first"},
        "calibrating": {"calibrate": True},
        "8 back": {"calibrate": True, "window": 8},
    }
    times, runs = step_times(network, ways)
    medians = {name: (statistics.median(times[name]), statistics.median(runs[name])) for name in ways}
    for name, (step, run) in medians.items():
        more, in_all = (100 * (a / b - 1) for a, b in zip((step, run), medians["computing"], strict=True))
        print(f"{name:12} {1e3 * step:6.2f} ms a step, {more:+5.1f}%; {1e3 * run:6.1f} ms a run, {in_all:+5.1f}% of computing")


@torch.inference_mode()
def measure(network, tokens):
    """A run of ``COUNT`` digits."""
    sigmas = model.sigmas_for(STEPS)
    with magpolicy.attach(network, calibrate=True, tokens=tokens) as handle:
        with handle.run(sigmas=sigmas):
            model.euler(loop.guided(network, handle), loop.noise_for(1, COUNT), sigmas, torch.arange(COUNT) % 10)
        return handle.calibration


def figures(calibration):
    """Hold errors, forecast errors, and coefficients of evenly spaced steps 2 and 3 apart."""
    rows = []
    for stream in calibration.streams:
        for gap in (2, 3):
            for j in range(gap, STEPS - gap):
                triple = stream, j - gap, j, j + gap - 1
                rows.append(
                    (
                        calibration.hold_error(stream, j, j + gap - 1),
                        calibration.forecast_error(*triple),
                        calibration.coefficient(*triple),
                    )
                )
    return np.array(rows)


def loss(network) -> None:
    every = figures(measure(network, None))
    print("tokens  hold error  forecast error  coefficient  (median and largest relative difference; coefficient: absolute)")
    for tokens in (32, 128, 512, 1024, 2048):
        some = figures(measure(network, tokens))
        off = np.abs(some - every)
        off[:, :2] /= every[:, :2]
        print(f"{tokens:6}  " + "  ".join(f"{np.median(column):.3f} {column.max():.3f}" for column in off.T))


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = model.load()
    with torch.inference_mode():
        cost(loaded)
    loss(loaded)
