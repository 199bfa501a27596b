"""What a plan loses when it was calibrated elsewhere: ``python -m benchmarks.quality.transfer --model digits``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from attrs import evolve
from benchmarks.quality import data, methods
from benchmarks.quality.measure import psnr
from benchmarks.quality.methods import Bench, calibrated, calibration_job
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import COUNTS, RESULTS, hushed
from benchmarks.quality.sampling import Job, generate
from benchmarks.quality.sweep import targets

import magpolicy
import torch


def calibrations(model: LabModel, network: object) -> Iterator[tuple[str, magpolicy.Calibration]]:
    """(what it was made from, calibration at the model's own number of steps)."""

    def one(**options: object) -> magpolicy.Calibration:
        job = calibration_job(model, **options)  # type: ignore[arg-type]
        return calibrated(job, network)

    yield "one sample", one()
    several = [one(seed=200 + n, start=2 * n) for n in range(4)]
    for n in (0, 1):
        yield f"one other sample, other prompt class ({n + 1})", several[n]
    yield "4 samples merged", magpolicy.Calibration.merge(several)
    for steps in (20, 50):
        yield f"one sample at {steps} steps, resampled", one(steps=steps).resample(sigmas=Job.of(model, seed=1, count=1).sigmas)
    if model.name == "video":
        short = evolve(model, shape=(1, 4, data.VIDEO_SIZE, data.VIDEO_SIZE))
        yield "one sample of 4 frames instead of 6", calibrated(calibration_job(short), network)
    if model.name == "clothes":
        small = evolve(model, shape=(1, 24, 24))
        yield "one sample of 24 by 24 pixels instead of 28", calibrated(calibration_job(small), network)


def measure(name: str) -> dict[str, list[float]]:
    model, found = MODELS[name], {}
    network = model.load()
    euler = Job.of(model, seed=3, count=COUNTS[name])
    made = list(calibrations(model, network))
    for label, calibration in made:
        found[f"{label}; euler"] = _figures(model, network, euler, calibration)
        print(label, [round(v, 1) for v in found[f"{label}; euler"]], flush=True)
    other = Job.of(model, seed=3, count=COUNTS[name], sampler="unipc")
    job = calibration_job(model, sampler="unipc")
    own = calibrated(job, network)
    for label, calibration in (
        ("one sample under unipc", own),
        ("one sample under euler", made[0][1].resample(sigmas=other.sigmas)),
    ):
        found[f"{label}; unipc"] = _figures(model, network, other, calibration)
        print(label, "on unipc", [round(v, 1) for v in found[f"{label}; unipc"]], flush=True)
    return found


def _figures(model: LabModel, network: object, job: Job, calibration: magpolicy.Calibration) -> list[float]:
    full, bench = generate(job, network), Bench(model, network, job, calibration)
    rows = []
    for k in targets(job.steps):
        with methods.scheduled(bench, methods.planned(bench, k)) as control:
            rows.append(psnr(model, generate(job, network, control), full))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits", choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with hushed():
        found = measure(options.model)
    (RESULTS / f"transfer-{options.model}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
