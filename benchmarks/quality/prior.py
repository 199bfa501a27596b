"""Plans without a calibration, really run: ``python -m benchmarks.quality.prior --models digits video clothes``.

Each model is predicted from the two others only (leave one out), at 28 steps of its own schedule, at a half and a third of the work.
Rows are kept as they come, one file a model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from attrs import evolve
from benchmarks.quality import full_runs, methods
from benchmarks.quality.fit_prior import Shape, fitted, mean_shape, norms_of
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import RESULTS, hushed
from benchmarks.quality.sampling import Job, generate

import magpolicy
import torch

STEPS, SEED, SAMPLES = 28, 11, {"digits": 8, "video": 4, "clothes": 8}
BUDGETS = (14, 9)

Calibrations = Mapping[str, Callable[[], magpolicy.Calibration]]


def job_of(model: LabModel, *, seed: int = SEED, count: int | None = None) -> Job:
    return Job.of(model, seed=seed, count=count or SAMPLES[model.name], steps=STEPS)


def calibrations(name: str, network: object, job: Job) -> Calibrations:
    """What plans are made from, by name."""
    model = MODELS[name]
    others = [full_runs.full_run(other) for other in full_runs.trained() if other != name]
    own = full_runs.full_run(name)
    levels = job.sigmas
    mean = mean_shape(others)
    analytic = Shape.analytic(fitted(others), others[0].sigmas)
    lengths, flat = norms_of(own), norms_of(None)
    return {
        "own calibration at 28 steps": lambda: methods.calibrated(
            methods.calibration_job(model, steps=STEPS), network
        ),
        "own full run of 60 steps": lambda: own.resample(sigmas=levels),
        "mean of others": lambda: mean.calibration(levels),
        "mean of others, own norms": lambda: evolve(mean, norms=lengths).calibration(levels),
        "mean of others, constant norms": lambda: evolve(mean, norms=flat).calibration(levels),
        "formula from others": lambda: evolve(analytic, norms=mean.norms).calibration(levels),
        "formula from others, own norms": lambda: evolve(analytic, norms=lengths).calibration(levels),
        "formula from others, constant norms": lambda: evolve(analytic, norms=flat).calibration(levels),
    }


def plans(name: str, network: object, job: Job, computed: int) -> Iterator[tuple[str, Callable[[], magpolicy.Schedule]]]:
    """(name of the row, how to make its schedule)."""
    guidance = MODELS[name].guidance
    made = calibrations(name, network, job)
    curve = full_runs.full_run(name).curve
    yield "ratios, held", lambda: magpolicy.plan(curve, sigmas=job.sigmas, computed=computed, forecast="hold", max_skips=4)
    yield "evenly spaced, linear", lambda: linear(job, computed)
    for label, calibration in made.items():
        yield label, lambda calibration=calibration: magpolicy.plan(calibration(), computed=computed, guidance=guidance)


def linear(job: Job, computed: int) -> magpolicy.Schedule:
    """Evenly spaced steps, the straight line through the last two residuals."""
    mask, levels = methods.uniform_mask(job.steps, computed, ends=True), job.sigmas
    rows, p, j = [], None, 0
    for i, computes in enumerate(mask):
        forecasts = not computes and p is not None
        rows.append((levels[i] - levels[j]) / (levels[j] - levels[p]) if forecasts else 0.0)
        p, j = (j, i) if computes and i else (p, j)
    names = ("cond", "uncond")
    return magpolicy.Schedule.from_mask(dict.fromkeys(names, mask), coefficients=dict.fromkeys(names, rows))


def measure(name: str, only: str = "", again: bool = False) -> None:
    model = MODELS[name]
    path = RESULTS / f"prior-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else {}
    network, job = model.load(), job_of(model)
    full = generate(job, network)
    bench = methods.Bench(model, network, job, full_runs.full_run(name))
    for computed in BUDGETS:
        for label, make in plans(name, network, job, computed):
            key = f"{label}; {computed}"
            if only not in label or (key in rows and not again):
                continue
            started = time.perf_counter()
            schedule = make()
            with methods.scheduled(bench, schedule) as control:
                rows[key] = psnr(model, generate(job, network, control), full)
            print(f"{name} {key}: {rows[key]:.1f} dB  {schedule.mask_line if hasattr(schedule, 'mask_line') else schedule}"
                  f"  {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
            path.write_text(json.dumps(rows, indent=1))


def table() -> str:
    """The figures as they stand in docs/explanation/quality.md."""
    found = {name: json.loads((RESULTS / f"prior-{name}.json").read_text()) for name in full_runs.trained()}
    labels = list(dict.fromkeys(key.split(";")[0] for rows in found.values() for key in rows))
    lines = ["| | " + " | ".join(MODELS[name].title for name in found) + " |", "| --- " * (len(found) + 1) + "|"]
    for label in labels:
        cells = [" / ".join(f"{rows.get(f'{label}; {k}', np.nan):.1f}" for k in BUDGETS) for rows in found.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=full_runs.trained(), choices=list(MODELS))
    parser.add_argument("--only", default="", help="measure rows whose name holds this")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with hushed():
        for name in options.models:
            measure(name, options.only, options.again)
    print(table())


if __name__ == "__main__":
    main()
