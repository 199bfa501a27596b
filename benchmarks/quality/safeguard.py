"""What a safeguard costs with right calibrations, and gains with wrong ones: ``python -m benchmarks.quality.safeguard``.

Each model runs plans from its own calibrations, from the general prior, and from calibrations that are wrong for it: of other
models, its own with the steps shuffled or backwards, of another sampler's noise levels taken for these. Each row is run as it
was planned, with several safeguards, and with every skip holding. Figures: PSNR to the full run, and how many steps computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from attrs import evolve
from benchmarks.quality import full_runs, methods
from benchmarks.quality.budget_rows import BUDGETS, STEPS, over_models
from benchmarks.quality.measure import psnr
from benchmarks.quality.methods import Attached
from benchmarks.quality.models import MODELS
from benchmarks.quality.run import RESULTS
from benchmarks.quality.sampling import Job, generate

import magpolicy
from magpolicy.calibration._prior import prior_calibration

SEEDS, SAMPLES = (11, 23), {"digits": 6, "video": 3, "clothes": 6}
GUARDS: dict[str, Any] = {"none": None, "margin 2": True, "margin 4": 4.0}


def calibrations(name: str, levels: list[float]) -> Iterator[tuple[str, magpolicy.Calibration]]:
    """(what it is, a calibration that is read at these levels)."""
    model = MODELS[name]
    network = model.load()

    def own(**options: Any) -> magpolicy.Calibration:
        return methods.calibrated(methods.calibration_job(model, steps=STEPS, **options), network)

    right = own()
    yield "right: its own", right
    yield "right: its own, another sample", own(seed=202, start=5)
    yield "right: its own of 60 steps", full_runs.full_run(name).resample(sigmas=levels)
    yield "the prior", prior_calibration(None, levels=levels, streams=("cond", "uncond"))
    for other in full_runs.trained():
        if other != name:
            yield "wrong: another model's", full_runs.full_run(other).resample(sigmas=levels)
    order = np.random.default_rng(0).permutation(STEPS)
    yield "wrong: its steps shuffled", reordered(right, order, levels)
    yield "wrong: its steps backwards", reordered(right, np.arange(STEPS)[::-1], levels)
    other = own(sampler="unipc")
    yield "wrong: another sampler's levels", evolve(other, sigmas=levels)
    shifted = evolve(model, shift=5.0 if model.shift == 1.0 else 1.0)
    job = methods.calibration_job(shifted, steps=STEPS)
    if job.sigmas == levels:  # the lab's Euler spaces its levels evenly whatever the shift
        job = evolve(job, sampler="unipc")
    yield "wrong: another shift's levels", evolve(methods.calibrated(job, network), sigmas=levels)


def reordered(calibration: magpolicy.Calibration, order: Any, levels: list[float]) -> magpolicy.Calibration:
    """The same residuals in another order of steps, with what each direction looks like made from their inner products."""
    residuals: dict[str, list[Any]] = {}
    for name, moments in calibration.streams.items():
        gram = np.array([[_inner(moments.gram, i, j) for j in range(STEPS)] for i in range(STEPS)])
        values, vectors = np.linalg.eigh(gram)
        rows = vectors * np.sqrt(np.maximum(values, 0.0))
        residuals[name] = [rows[i][None, :] for i in order]
    return magpolicy.Calibration.from_residuals(residuals, sigmas=levels)


def _inner(gram: Any, i: int, j: int) -> float:
    late, early = max(i, j), min(i, j)
    return float(gram[late, late - early])


def held(schedule: magpolicy.Schedule) -> magpolicy.Schedule:
    """The same steps, every skip holding."""
    return magpolicy.Schedule.from_mask(dict(zip(schedule.streams, schedule.masks, strict=True)))


def measure(name: str) -> dict[str, Any]:
    model = MODELS[name]
    network = model.load()
    jobs = [Job.of(model, seed=seed, count=SAMPLES[name], steps=STEPS) for seed in SEEDS]
    full = [generate(job, network) for job in jobs]
    found: dict[str, Any] = {}

    def run(label: str, **settings: Any) -> None:
        figures, computed = [], []
        for job, reference in zip(jobs, full, strict=True):
            with magpolicy.attach(network, **settings) as handle:
                figures.append(psnr(model, generate(job, network, Attached(handle)), reference))
                computed.append(handle.report.computed)
        found.setdefault(label, []).append([float(np.mean(figures)), float(np.mean(computed))])
        print(f"{name}, {label}: {np.round(figures, 1)} dB, {computed} computed", flush=True)

    for what, calibration in calibrations(name, jobs[0].sigmas):
        if what != "the prior":
            calibration = evolve(calibration, provenance={})  # which would tell that it is another model's
        for budget in BUDGETS:
            settings = {"calibration": calibration, "computed": budget, "guidance": model.guidance, "learn": False}
            for guard, safeguard in GUARDS.items():
                run(f"{what}; {budget}; {guard}", safeguard=safeguard, **settings)
            plan = magpolicy.plan(calibration, computed=budget, guidance=model.guidance)
            run(f"{what}; {budget}; hold", schedule=held(plan))
    return found


def kept(name: str) -> None:
    (RESULTS / f"safeguard-{name}.json").write_text(json.dumps(measure(name), indent=1))


if __name__ == "__main__":
    over_models(__doc__, kept)
