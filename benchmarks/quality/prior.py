"""Plans without a calibration, really run: ``python -m benchmarks.quality.prior --models digits video clothes``.

Each model is predicted from the two others only (leave one out), at 28 steps of its own schedule, at a half and a third of the
work. Rows are kept as they come, one file a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import evolve
from benchmarks.quality import budget_rows, full_runs, methods
from benchmarks.quality.budget_rows import BUDGETS, STEPS
from benchmarks.quality.fit_prior import fitted, mean_shape, norms_of
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import RESULTS
from benchmarks.quality.sampling import Job, generate

import magpolicy
from magpolicy.calibration._prior import prior_calibration

SEEDS, SAMPLES = (11, 23), {"digits": 8, "video": 4, "clothes": 8}
"""Two batches of noise, of so many samples each; every sample has noise of its own."""

Plan = Callable[[Job, int], magpolicy.Schedule]


def job_of(model: LabModel, *, seed: int = SEEDS[0]) -> Job:
    return Job.of(model, seed=seed, count=SAMPLES[model.name], steps=STEPS)


def rows(name: str, network: object) -> dict[str, Plan]:
    """Every way to plan the model, by name."""
    model = MODELS[name]
    own = full_runs.full_run(name)
    others = [full_runs.full_run(other) for other in full_runs.trained() if other != name]
    directions, mean = fitted(others), mean_shape(others)
    measured = methods.calibrated(methods.calibration_job(model, steps=STEPS), network)

    def planned(calibration_of: Callable[[list[float]], magpolicy.Calibration], **settings: Any) -> Plan:
        return lambda job, computed: magpolicy.plan(calibration_of(job.sigmas), computed=computed, **settings)

    return {
        "planned from ratios and an even turn, residual held": planned(
            lambda levels: even_turn(own.curve, levels), forecast="hold", max_skips=4, objective="latent"
        ),
        "evenly spaced, linear": linear,
        "mean of the others' inner products": planned(mean.calibration),
        "the same with the model's norms": planned(evolve(mean, norms=norms_of(own)).calibration),
        "the prior, norms constant": planned(
            lambda levels: prior_calibration(None, levels=levels, streams=("cond", "uncond"), directions=directions)
        ),
        "the prior, norms of the model's ratios": planned(
            lambda levels: prior_calibration(own.curve, levels=levels, directions=directions)
        ),
        "a calibration of the model, 60 steps": planned(lambda levels: own.resample(sigmas=levels), guidance=model.guidance),
        "a calibration of the model, as many steps": planned(
            lambda levels: measured.resample(sigmas=levels), guidance=model.guidance
        ),
    }


def even_turn(curve: magpolicy.Curve, levels: Sequence[float]) -> magpolicy.Calibration:
    """What plans were made from where only ratios are known, before there was a prior: a turn by one radian over the run."""
    norms = [np.cumprod(row) for row in curve.resample(sigmas=levels).ratios.values()]
    angle = np.asarray(levels) / curve.levels[0]
    residuals = {
        name: [np.array([[n * np.cos(a), n * np.sin(a)]]) for n, a in zip(row, angle, strict=True)]
        for name, row in zip(curve.streams, norms, strict=True)
    }
    return magpolicy.Calibration.from_residuals(residuals, sigmas=levels)


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
    figures = json.loads(path.read_text()) if path.exists() else {}
    network = model.load()
    jobs = [job_of(model, seed=seed) for seed in SEEDS]
    full = [generate(job, network) for job in jobs]
    for label, plan in rows(name, network).items():
        for computed in BUDGETS:
            key = f"{label}; {computed}"
            if only not in label or (key in figures and not again):
                continue
            each = []
            for job, reference in zip(jobs, full, strict=True):
                schedule = plan(job, computed)
                bench = methods.Bench(model, network, job, full_runs.full_run(name))
                with methods.scheduled(bench, schedule) as control:
                    each.append(psnr(model, generate(job, network, control), reference))
            figures[key] = float(np.mean(each))
            print(f"{name} {key}: {each} dB  {schedule.strip}", flush=True)
            path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    budget_rows.main("prior", __doc__, measure)
