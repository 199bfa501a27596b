"""How often a run by the prior doubts its forecasts, on models whose residuals do keep their direction.

``python -m benchmarks.quality.doubts``: each model at its own shift, 3 and 6, at three speeds. What is held is held wrongly.
"""

from __future__ import annotations

from attrs import evolve
from benchmarks.quality import full_runs, methods, prior
from benchmarks.quality.models import MODELS
from benchmarks.quality.run import hushed
from benchmarks.quality.sampling import generate

import magpolicy
import torch

SHIFTS, SPEEDS = (3.0, 6.0), (1.5, 2.0, 3.0)


def main() -> None:
    torch.set_num_threads(1)
    with hushed():
        for name in full_runs.trained():
            network = MODELS[name].load()
            for shift in sorted({MODELS[name].shift, *SHIFTS}):
                model = evolve(MODELS[name], shift=shift)
                job = evolve(prior.job_of(model, seed=5), model=model)
                for speedup in SPEEDS:
                    with magpolicy.attach(network, speedup=speedup, learn=False) as handle:
                        generate(job, network, methods.Attached(handle))
                    report = handle.report
                    held = report.held.get("doubtful", 0)
                    print(f"{name}, shift {shift:g}, {speedup:g}x: {held} of {report.forecasts + held} held  {report.strip}")


if __name__ == "__main__":
    main()
