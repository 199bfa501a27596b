"""Noise levels moved to fit a plan (level alignment): ``python -m benchmarks.quality.alignment``.

BudCache (arXiv 2606.13496) moves the noise levels of a run to where they suit the steps that compute. Here the levels of a
plan's computed steps are moved by up to half a step, and those between go along. What was found the best in real runs of two
samples is measured on others. The forecasts are fitted anew to the moved levels, which stay within the calibrated ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from attrs import evolve, frozen
from benchmarks.quality import full_runs, methods
from benchmarks.quality.budget_rows import BUDGETS, over_models
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS
from benchmarks.quality.prior import SEEDS, job_of
from benchmarks.quality.sampling import Job, generate

import magpolicy
from magpolicy.planning._planned_schedule import joint_schedule
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget
from torch import Tensor

SHIFTS = (0.25, 0.12, 0.06)
"""By what share of a step a level is moved, one round after another."""
FARTHEST = 0.45
"""Of a step: levels stay in order."""


@frozen
class Aligning:
    """One plan, and runs of it at levels that are moved."""

    bench: methods.Bench
    computed: tuple[int, ...]
    """Positions that compute."""

    def levels(self, shifts: Sequence[float]) -> tuple[float, ...]:
        """The run's levels, with those of the computed steps but the first moved by so many steps."""
        own = [*self.bench.job.sigmas, 0.0]
        positions = np.arange(len(own) - 1)
        moved = positions + np.interp(positions, [*self.computed, len(own) - 1], [0.0, *shifts, 0.0])
        lowest, highest = self.bench.calibration.sigmas[-1], self.bench.calibration.sigmas[0]
        found = np.clip(np.interp(moved, np.arange(len(own)), own), lowest, highest)
        return (own[0], *found[1:].tolist())

    def run(self, job: Job, shifts: Sequence[float]) -> Tensor:
        levels = self.levels(shifts)
        target = PlanTarget(computed=len(self.computed), guidance=self.bench.model.guidance)
        problem = PlanRequest(source=self.bench.calibration.resample(sigmas=levels), target=target).problem()
        with methods.scheduled(self.bench, joint_schedule(problem, self.computed)) as control:
            return generate(evolve(job, levels=levels), self.bench.network, control)

    def full(self, job: Job, shifts: Sequence[float]) -> Tensor:
        return generate(evolve(job, levels=self.levels(shifts)), self.bench.network)

    def best(self, job: Job, reference: Tensor) -> list[float]:
        """The shifts with which a run comes nearest to the reference, one moved at a time."""
        shifts = [0.0] * (len(self.computed) - 1)
        least = _distance(self.run(job, shifts), reference)
        for size in SHIFTS:
            for index in range(len(shifts)):
                for tried in _moved(shifts, index, size):
                    if (error := _distance(self.run(job, tried), reference)) < least:
                        shifts, least = tried, error
                        break
        return shifts


def _moved(shifts: Sequence[float], index: int, size: float) -> Iterator[list[float]]:
    for change in (-size, size):
        value = shifts[index] + change
        if abs(value) <= FARTHEST:
            yield [*shifts[:index], value, *shifts[index + 1 :]]


def _distance(made: Tensor, reference: Tensor) -> float:
    return float((made - reference).square().mean())


def measure(name: str) -> None:
    model, own = MODELS[name], full_runs.full_run(name)
    network = model.load()
    jobs = [job_of(model, seed=seed) for seed in SEEDS]
    learning = evolve(jobs[0], noise=model.noise(101, 2), labels=model.labels(2, 3))
    full = [generate(job, network) for job in jobs]
    for computed in BUDGETS:
        schedule = magpolicy.plan(own.resample(sigmas=learning.sigmas), computed=computed, guidance=model.guidance)
        chosen = tuple(i for i, computes in enumerate(schedule.mask) if computes)
        aligning = Aligning(methods.Bench(model, network, learning, own), chosen)
        shifts = aligning.best(learning, generate(learning, network))
        rows = {
            "as planned": [aligning.run(job, [0.0] * len(shifts)) for job in jobs],
            "levels moved": [aligning.run(job, shifts) for job in jobs],
            "in full, at the moved levels": [aligning.full(job, shifts) for job in jobs],
        }
        for label, made in rows.items():
            each = [psnr(model, latents, reference) for latents, reference in zip(made, full, strict=True)]
            print(f"{name}, {computed} of {learning.steps}, {label}: {np.mean(each):.1f} dB", flush=True)


if __name__ == "__main__":
    over_models(__doc__, measure)
