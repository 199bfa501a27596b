"""What the method might gain, tried on the lab's models: ``python -m benchmarks.quality.trials corrector --models digits``.

Settings are chosen on one batch of noise (`TUNED`), the figures are of two others (`JUDGED`). A trial ships if it wins 1 dB on
two models and loses nothing on the third; docs/explanation/quality.md says what became of each.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from attrs import define
from benchmarks.quality import forecasting, methods, prior
from benchmarks.quality.forecasting import Correct, Forecast, Forecasting, Past
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import RESULTS, hushed
from benchmarks.quality.sampling import Job, generate

import magpolicy
import torch
from torch import Tensor

STEPS, BUDGETS = 28, (14, 11, 9)
TUNED, JUDGED = (301,), (11, 23)
SAMPLES = {"digits": 8, "video": 4, "clothes": 8}


@define
class Runs:
    """Batches of one model and their full runs."""

    model: LabModel
    network: Any
    jobs: list[Job]
    full: list[Tensor]

    @classmethod
    def of(cls, model: LabModel, network: Any, seeds: Sequence[int]) -> Runs:
        jobs = [Job.of(model, seed=seed, count=SAMPLES[model.name], steps=STEPS) for seed in seeds]
        return cls(model, network, jobs, [generate(job, network) for job in jobs])

    def psnr(
        self,
        mask: Sequence[bool],
        forecast: Forecast,
        correct: Correct | None = None,
    ) -> float:
        """Mean over the samples, dB to the full run at its own levels."""
        control = Forecasting(self.network, mask, forecast, correct)
        made = [generate(job, self.network, control) for job in self.jobs]
        return float(np.mean([psnr(self.model, *pair) for pair in zip(made, self.full, strict=True)]))


@define(slots=False)
class Subject:
    """A model under trial: how it is planned, what is tuned on, what it is judged by."""

    model: LabModel
    network: Any
    tuned: Runs
    judged: Runs

    @classmethod
    def of(cls, name: str) -> Subject:
        model = MODELS[name]
        network = model.load()
        return cls(model, network, Runs.of(model, network, TUNED), Runs.of(model, network, JUDGED))

    @functools.cached_property
    def calibration(self) -> magpolicy.Calibration:
        """Of one other sample."""
        return self.calibrated(101)

    def calibrated(self, seed: int) -> magpolicy.Calibration:
        return methods.calibrated(methods.calibration_job(self.model, seed=seed, steps=STEPS), self.network)

    def planned(self, computed: int, **settings: Any) -> magpolicy.Schedule:
        return magpolicy.plan(self.calibration, computed=computed, guidance=self.model.guidance, **settings)

    def even(self, computed: int) -> magpolicy.Schedule:
        """Evenly spaced steps with our forecast."""
        mask = methods.uniform_mask(STEPS, computed, ends=True)
        return self.planned(computed, forced=[i for i, computes in enumerate(mask) if computes])

    @functools.cached_property
    def priors(self) -> dict[str, prior.Plan]:
        return prior.rows(self.model.name, self.network)

    def uncalibrated(self, computed: int) -> magpolicy.Schedule:
        return self.priors["the prior, norms constant"](self.judged.jobs[0], computed)


Row = tuple[str, list[float]]


# A corrector at computed steps.


def sizes(levels: Sequence[float]) -> list[float]:
    """How far each step goes in noise level."""
    return [here - after for here, after in zip(levels, (*levels[1:], 0.0), strict=True)]


def lagrange(levels: Sequence[float], nodes: Sequence[int], step: int) -> dict[int, float]:
    """Weights of the residuals at ``nodes`` in the interpolation between them."""
    others = {i: [levels[j] for j in nodes if j != i] for i in nodes}
    return {i: float(np.prod([(levels[step] - s) / (levels[i] - s) for s in rest])) for i, rest in others.items()}


def corrector(share: float | Callable[[float], float]) -> Correct:
    """Adds at a computed step a share of what the forecasts of the gap before left out, seen from there.

    r_i + (c / h_i) sum over the gap of h_m (interpolated_m - forecast_m), through r_i and the two before. ``share``
    is c, or a function of the noise level.
    """

    def correct(past: Past, step: int, residual: Tensor) -> Tensor:
        nodes = past.latest(3)
        gap = range(nodes[1] + 1, step) if len(nodes) > 1 else range(0)
        c = share(past.levels[step]) if callable(share) else share
        if not gap or not c:
            return residual
        h = sizes(past.levels)
        missed = sum(h[m] * (past.mixed(lagrange(past.levels, nodes, m)) - past.added[m]) for m in gap)
        return residual + c / h[step] * missed

    return correct


SHARES = (0.0, 0.15, 0.3, 0.6)


def correctors(subject: Subject) -> Iterator[Row]:
    """c chosen for each plan on the tuned batch, from `SHARES`; then one c for each half of the run."""
    ways = {"plan": subject.planned, "even": subject.even, "prior": subject.uncalibrated}
    for name, plan in ways.items():
        schedules = [plan(k) for k in BUDGETS]
        found: dict[str, list[float]] = {}
        for schedule in schedules:
            forecast = forecasting.planned(schedule)
            tried = {c: subject.tuned.psnr(schedule.mask, forecast, corrector(c)) for c in SHARES}
            best = max(tried, key=lambda c: tried[c])
            halves = [
                (early, late, subject.tuned.psnr(schedule.mask, forecast, corrector(halved(early, late))))
                for early in SHARES[:3]
                for late in SHARES[:3]
                if early != late
            ]
            early, late, _ = max([*halves, (best, best, tried[best])], key=lambda row: row[2])
            print(subject.model.name, name, schedule.computed, tried, (early, late), flush=True)
            for label, c in {"none": 0.0, "c = 0.3": 0.3, "c = 0.6": 0.6, "fitted": best}.items():
                found.setdefault(label, []).append(subject.judged.psnr(schedule.mask, forecast, corrector(c)))
            row = subject.judged.psnr(schedule.mask, forecast, corrector(halved(early, late)))
            found.setdefault("fitted for each half", []).append(row)
        yield from ((f"{name}, {label}", row) for label, row in found.items())


def halved(early: float, late: float) -> Callable[[float], float]:
    return lambda level: early if level > 0.5 else late


# A probe: the change of the stack's input at the skipped step.


def lengths(tensor: Tensor, by: str) -> Tensor:
    """Of each sample or of each of its tokens, shaped to multiply."""
    return tensor.norm(dim=-1, keepdim=True) if by == "token" else tensor.flatten(1).norm(dim=1)[:, None, None]


def relation(past: Past, step: int, by: str) -> Tensor:
    """The change of the stack's input since the last computed step, over that between the last two (RFC, arXiv 2602.19506)."""
    j, p = past.latest(2)
    change = lengths(past.inputs[step] - past.inputs[j], by)
    return change / lengths(past.inputs[j] - past.inputs[p], by).clamp_min(1e-9)


def probed(forecast: Forecast, by: str, power: float = 1.0, usual: dict[tuple[str, int], float] | None = None) -> Forecast:
    """``forecast``, its change given another size.

    Without ``usual`` the size is that of the residual's last change times the `relation`, as published. With it (the relation
    on the calibration sample) the size is changed by how far this run's relation is from the usual, to a power.
    """

    def scaled(past: Past, step: int) -> Tensor:
        if len(past.computed) < 2:
            return forecast(past, step)
        j, p = past.latest(2)
        change = forecast(past, step) - past.computed[j]
        if usual is None:
            wanted = relation(past, step, by) * lengths(past.computed[j] - past.computed[p], by)
            return past.computed[j] + wanted / lengths(change, by).clamp_min(1e-9) * change
        factor = (relation(past, step, by) / usual[past.stream, step]) ** power
        return past.computed[j] + factor.clamp(0.5, 2.0) * change

    return scaled


def usual_relations(subject: Subject, schedule: magpolicy.Schedule) -> dict[tuple[str, int], float]:
    """What the relation is in a run of the schedule on the calibration's sample."""
    seen: dict[tuple[str, int], float] = {}
    inner = forecasting.planned(schedule)

    def watched(past: Past, step: int) -> Tensor:
        if len(past.computed) > 1:
            seen[past.stream, step] = float(relation(past, step, "sample").mean())
        return inner(past, step)

    job = methods.calibration_job(subject.model, steps=STEPS)
    generate(job, subject.network, Forecasting(subject.network, schedule.mask, watched))
    return seen


def probes(subject: Subject) -> Iterator[Row]:
    schedules = [subject.planned(k) for k in BUDGETS]
    usual = [usual_relations(subject, schedule) for schedule in schedules]
    plain = [forecasting.planned(schedule) for schedule in schedules]
    ways = {
        "plan": plain,
        "size by the relation, of samples": [probed(forecast, "sample") for forecast in plain],
        "size by the relation, of tokens": [probed(forecast, "token") for forecast in plain],
        "size by the relation over the usual": [probed(f, "sample", 1.0, u) for f, u in zip(plain, usual, strict=True)],
        "the same, its square root": [probed(f, "sample", 0.5, u) for f, u in zip(plain, usual, strict=True)],
        "the inverse": [probed(f, "sample", -1.0, u) for f, u in zip(plain, usual, strict=True)],
    }
    for label, forecasts in ways.items():
        yield label, [subject.judged.psnr(s.mask, f) for s, f in zip(schedules, forecasts, strict=True)]


# More work, less error.


def regular(subject: Subject) -> Iterator[Row]:
    """Budgets of a quarter to three quarters: a calibration, the prior, and masks of the one with forecasts of the other."""

    def crossed(mask: magpolicy.Schedule) -> magpolicy.Schedule:
        return subject.planned(mask.computed, forced=[i for i, computes in enumerate(mask.mask) if computes])

    ways = {
        "a calibration": subject.planned,
        "the prior": subject.uncalibrated,
        "the prior's steps, a calibration's forecasts": lambda k: crossed(subject.uncalibrated(k)),
    }
    for label, plan in ways.items():
        row = []
        for k in REGULAR:
            schedule = plan(k)
            row.append(subject.judged.psnr(schedule.mask, forecasting.planned(schedule)))
            print(subject.model.name, label, k, f"{row[-1]:.1f}", schedule.strip, flush=True)
        yield label, row


REGULAR = (7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 21)
TRIALS: dict[str, Callable[[Subject], Iterator[Row]]] = {
    "corrector": correctors,
    "probe": probes,
    "regular": regular,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.trials", description=__doc__)
    parser.add_argument("trial", choices=list(TRIALS))
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / f"trial-{options.trial}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with hushed():
        for name in options.models:
            for label, row in TRIALS[options.trial](Subject.of(name)):
                print(f"{name} | {label} | {' / '.join(f'{value:.1f}' for value in row)}", flush=True)
                kept = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps(kept | {f"{name}; {label}": row}, indent=1))


if __name__ == "__main__":
    main()
