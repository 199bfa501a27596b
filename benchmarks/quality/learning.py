"""Plans from what earlier runs taught, really run: ``python -m benchmarks.quality.learning --models digits video clothes``.

``attach(network, computed=...)`` is all that is said. Runs of one sample teach, each of another prompt and seed. Then samples
of other seeds are run by a plan from what is known, and are measured against the full run. The general prior is the one fitted
to the two other models (leave one out). Rows are kept as they come, one file a model.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from benchmarks.quality import budget_rows, full_runs, methods
from benchmarks.quality.budget_rows import BUDGETS, STEPS
from benchmarks.quality.fit_prior import fitted
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import RESULTS
from benchmarks.quality.sampling import Job, generate

import magpolicy
import torch
from magpolicy.calibration import _completed, _prior

SEEDS, SAMPLES = (11, 23, 37, 51), {"digits": 4, "video": 2, "clothes": 4}
TEACHERS = (301, 302, 303, 304)
Settings = dict[str, Any]
ROWS: dict[str, tuple[int, Settings]] = {
    "nothing known: the general prior": (0, {}),
    "learned from one run that skipped": (1, {}),
    "learned from four runs that skipped": (4, {}),
    "learned from one run in full": (1, {"learn": "first"}),
}
"""Runs that teach before, and how they are attached."""
OWN = "a calibration of the model"


@contextmanager
def at_home(name: str) -> Iterator[None]:
    """A user's folder without anything in it, and the prior of the models other than ``name``."""
    others = [full_runs.full_run(other) for other in full_runs.trained() if other != name]
    functions: list[Any] = [_prior.prior_calibration, _completed.completed, _prior.with_prior]
    for function in functions:
        function.__kwdefaults__["directions"] = fitted(others)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MAGPOLICY_HOME"] = folder
        yield


def run(model: LabModel, network: Any, job: Job, **settings: Any) -> tuple[torch.Tensor, Any]:
    """The samples of a run, and its report."""
    with magpolicy.attach(network, **settings) as handle:
        made = generate(job, network, methods.Attached(handle))
        return made, handle.report


def learned(model: LabModel, network: Any, computed: int, runs: int, settings: Settings) -> Settings:
    """Make the runs that teach; how to attach afterwards."""
    for place, seed in enumerate(TEACHERS[:runs]):
        job = Job.of(model, seed=seed, count=1, steps=STEPS, start=3 + 2 * place)
        run(model, network, job, computed=computed, **guided(model, place or settings.get("learn")), **settings)
    return {"learn": False, **guided(model, runs)}


def guided(model: LabModel, known: Any) -> Settings:
    """The scale of guidance, as a pipeline would tell it: of use where both of its branches are known."""
    return {"guidance": model.guidance} if known and known != "first" else {}


def calibrated(model: LabModel, network: Any) -> Settings:
    job = Job.of(model, seed=TEACHERS[0], count=1, steps=STEPS, start=3)
    return {"calibration": methods.calibrated(job, network), "guidance": model.guidance}


def measure(name: str, only: str = "", again: bool = False) -> None:
    model = MODELS[name]
    path = RESULTS / f"learning-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = json.loads(path.read_text()) if path.exists() else {}
    network = model.load()
    jobs = [Job.of(model, seed=seed, count=SAMPLES[name], steps=STEPS) for seed in SEEDS]
    full = [generate(job, network) for job in jobs]
    for label in (*ROWS, OWN):
        for computed in BUDGETS:
            key = f"{label}; {computed}"
            if only not in label or (key in figures and not again):
                continue
            with at_home(name):
                own = label == OWN
                settings = calibrated(model, network) if own else learned(model, network, computed, *ROWS[label])
                made = [run(model, network, job, computed=computed, **settings) for job in jobs]
            each = [psnr(model, latents, reference) for (latents, _), reference in zip(made, full, strict=True)]
            figures[key] = float(np.mean(each))
            report = made[-1][1]
            print(f"{name} {key}: {[round(e, 1) for e in each]} dB  {report.strip}  by {report.source}", flush=True)
            path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    budget_rows.main("learning", __doc__, measure, (*ROWS, OWN))
