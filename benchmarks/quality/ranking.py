"""Whether a plan's printed figures rank outcomes: ``python -m benchmarks.quality.ranking``.

For the schedules that ``benchmarks.quality.prior`` really ran, at a half and a third of the work, the rank correlation of the
measured PSNR with the expected distance of the latent, and with the mean error of single steps. Run that first.
"""

from __future__ import annotations

import json

import numpy as np
from benchmarks.quality import full_runs, methods, prior
from benchmarks.quality.models import MODELS
from benchmarks.quality.run import RESULTS, hushed

import magpolicy


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def correlations(name: str) -> tuple[float, float]:
    """Spearman's, of PSNR with the distance, and with the root mean square of the steps' relative errors."""
    model = MODELS[name]
    network, job = model.load(), prior.job_of(model)
    known = methods.calibrated(methods.calibration_job(model, steps=prior.STEPS), network).resample(sigmas=job.sigmas)
    figures = json.loads((RESULTS / f"prior-{name}.json").read_text())
    rows = []
    for label, plan in prior.rows(name, network).items():
        for computed in prior.BUDGETS:
            schedule = plan(job, computed)
            distance = magpolicy.expected_distance(known, schedule, sigmas=job.sigmas, guidance=model.guidance)
            errors = magpolicy.expected_errors(known, schedule, sigmas=job.sigmas)
            rms = float(np.sqrt(np.mean([np.square(row) for row in errors.values()])))
            rows.append((figures[f"{label}; {computed}"], distance, rms))
    psnr, distances, errors = (ranks(list(column)) for column in zip(*rows, strict=True))
    return float(np.corrcoef(psnr, distances)[0, 1]), float(np.corrcoef(psnr, errors)[0, 1])


def main() -> None:
    with hushed():
        for name in full_runs.trained():
            distance, rms = correlations(name)
            print(f"{name}: PSNR with the expected distance {distance:.2f}, with the steps' rms error {rms:.2f}", flush=True)


if __name__ == "__main__":
    main()
