"""How much of the general prior plans should mix into what one sample taught: ``python -m benchmarks.quality.share``.

A calibration of 28 steps on one sample, with several shares of the prior (:attr:`magpolicy.Calibration.prior_share`), at a half
and a third of the work, on three other batches of noise.
"""

from __future__ import annotations

import numpy as np
from attrs import evolve
from benchmarks.quality import methods, prior
from benchmarks.quality.budget_rows import BUDGETS, STEPS, over_models
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS
from benchmarks.quality.sampling import generate

import magpolicy

SHARES, SEEDS = (0.0, 0.03, 0.1, 0.4), (*prior.SEEDS, 37)


def measure(name: str) -> None:
    model, network = MODELS[name], MODELS[name].load()
    jobs = [prior.job_of(model, seed=seed) for seed in SEEDS]
    full = [generate(job, network) for job in jobs]
    known = methods.calibrated(methods.calibration_job(model, steps=STEPS), network).resample(sigmas=jobs[0].sigmas)
    for share in SHARES:
        for computed in BUDGETS:
            schedule = magpolicy.plan(evolve(known, prior_share=share), computed=computed, guidance=model.guidance)
            each = []
            for job, reference in zip(jobs, full, strict=True):
                with methods.scheduled(methods.Bench(model, network, job, known), schedule) as control:
                    each.append(psnr(model, generate(job, network, control), reference))
            print(f"{name}, share {share:g}, {computed} computed: {np.mean(each):.1f} dB  {schedule.strip}", flush=True)


if __name__ == "__main__":
    over_models(__doc__, measure)
