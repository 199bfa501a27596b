"""Wall time of the best rows: ``python -m benchmarks.quality.wall``, on a machine that does nothing else.

Every row is run again, all in turn with the full run, and the ratio of medians is printed beside the bound that its work sets.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

from benchmarks.quality import report, run
from benchmarks.quality.measure import counting
from benchmarks.quality.methods import Bench
from benchmarks.quality.models import MODELS
from benchmarks.quality.sampling import generate
from benchmarks.quality.sweep import KINDS, PEER, Trial, targets, trials

import torch

SHOWN = ("plan", "plan, first order", "published rule, hold", "fewer steps")


def chosen(model: str, sampler: str) -> Iterator[tuple[str, int, str]]:
    """(what it stands for, computed steps of the budget, key of the row): ours, baselines, and the best of others."""
    found = report.load(model, sampler)
    if found is None:
        raise FileNotFoundError(f"{run.path_of(model, sampler)}: nothing is measured yet; run: python -m benchmarks.quality")
    about, rows = found
    peers = [method for method, kind in KINDS.items() if kind == PEER and method not in SHOWN]
    for k in targets(about["steps"]):
        best = {name: report.best(rows, name, k / about["steps"], "fraction_all") for name in (*SHOWN, *peers)}
        others = [row for name in peers if (row := best[name]) is not None]
        picked = {name: best[name] for name in SHOWN} | {"best of others": max(others, key=lambda r: r["psnr"], default=None)}
        for name, row in picked.items():
            if row is not None:
                yield name, k, run.key_of(Trial(row["method"], row["settings"]))


def measure(model: str, sampler: str, repeats: int) -> None:
    """Print one line for each row."""
    bench = Bench.of(MODELS[model], sampler=sampler, count=run.COUNTS[model])
    made = {run.key_of(trial): trial for trial in trials(bench)}
    with counting(bench.network) as whole:
        generate(bench.job, bench.network)
    for name, k, key in chosen(model, sampler):
        trial, full, own, share = made[key], [], [], 0.0
        for _ in range(repeats):
            full.append(seconds(bench, Trial("full", {})))
            with counting(bench.network) as work:
                seconds(bench, trial)
            own.append(seconds(bench, trial))
            share = (work.first + work.others) / (whole.first + whole.others)
        gain = statistics.median(full) / statistics.median(own)
        spread = (max(own) - min(own)) / statistics.median(own)
        print(f"| {name} | {k} of {bench.steps} | {gain:.2f} | {1 / share:.2f} | {spread:.0%} | {key[:90]} |", flush=True)


def seconds(bench: Bench, trial: Trial) -> float:
    """Of one run, attaching left out."""
    job = trial.job or bench.job
    if trial.make is None:
        started = time.perf_counter()
        generate(job, bench.network)
        return time.perf_counter() - started
    with trial.make() as control:
        started = time.perf_counter()
        generate(job, bench.network, control)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.wall", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | budget | wall time, full over this | bound by work | spread | row |\n|---|---|---|---|---|---|")
    with run.hushed():
        for model in options.models:
            print(f"| **{model}** |", flush=True)
            measure(model, options.sampler, options.repeats)


if __name__ == "__main__":
    main()
