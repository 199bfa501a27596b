"""What one full run of each model taught, in small steps: the material that the general prior is fitted to.

One sample, 60 Euler steps from noise level 1 at even steps (shift 1), kept in ``prior/`` of the lab's cache.
"""

from __future__ import annotations

from pathlib import Path

from attrs import evolve
from benchmarks.quality import data
from benchmarks.quality.methods import calibrated, calibration_job
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import hushed

import magpolicy
from magpolicy.adapter import PRIOR_SHARE

STEPS = 60
FOLDER = data.CACHE / "prior"


def path_of(name: str, seed: int = 101) -> Path:
    return FOLDER / (f"{name}.json" if seed == 101 else f"{name}-{seed}.json")


def full_run(name: str, seed: int = 101) -> magpolicy.Calibration:
    """The calibration of the model's full run, measured once."""
    path = path_of(name, seed)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _measured(MODELS[name], seed).save(path)
    return evolve(magpolicy.load_calibration(path), prior_share=PRIOR_SHARE)  # also where it was measured before there was one


def _measured(model: LabModel, seed: int) -> magpolicy.Calibration:
    even = evolve(model, shift=1.0)
    with hushed():
        return calibrated(calibration_job(even, seed=seed, steps=STEPS), model.load())


def trained() -> list[str]:
    """The models whose weights are here."""
    return [name for name, model in MODELS.items() if model.weights.exists()]
