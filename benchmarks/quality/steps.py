"""How much a plan should trust the sizes of steps, where they are uneven: ``python -m benchmarks.quality.steps``.

A plan weighs the error of a step by the step's size, to a power: 1 trusts the sizes wholly, 0 not at all. The models run at
a shift of 3, with which steps grow tenfold over the run, 28 steps, at a half and a third of the work.
"""

from __future__ import annotations

import numpy as np
from attrs import evolve
from benchmarks.quality import full_runs, methods
from benchmarks.quality.budget_rows import BUDGETS, over_models
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS
from benchmarks.quality.prior import SEEDS, job_of
from benchmarks.quality.sampling import generate

import magpolicy
from magpolicy.calibration._prior import prior_calibration
from magpolicy.planning._objective import hedged, step_sizes

SHIFT, MORE_SEEDS = 3.0, (37,)
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def measure(name: str) -> None:
    model, own = evolve(MODELS[name], shift=SHIFT), full_runs.full_run(name)
    network = MODELS[name].load()
    jobs = [evolve(job_of(model, seed=seed), model=model) for seed in (*SEEDS, *MORE_SEEDS)]
    full = [generate(job, network) for job in jobs]
    levels = tuple(jobs[0].sigmas)
    sizes = step_sizes(levels)
    sources = {  # and the weights that a plan has by itself
        "the prior, constant norms": (prior_calibration(None, levels=levels, streams=("cond", "uncond")), hedged(sizes)),
        "the prior, norms from ratios": (prior_calibration(own.curve, levels=levels), sizes),
        "a calibration of the model": (own.resample(sigmas=levels), sizes),
    }
    for label, (source, built_in) in sources.items():
        for computed in BUDGETS:
            for power in POWERS:
                weights = (sizes / sizes.mean()) ** power / (built_in / sizes.mean())
                schedule = magpolicy.plan(source, computed=computed, weights=weights.tolist())
                each = []
                for job, reference in zip(jobs, full, strict=True):
                    with methods.scheduled(methods.Bench(model, network, job, own), schedule) as control:
                        each.append(psnr(model, generate(job, network, control), reference))
                print(f"{name}, {label}, {computed}: power {power:g} {np.mean(each):.1f} dB  {schedule.strip}", flush=True)


if __name__ == "__main__":
    over_models(__doc__, measure)
