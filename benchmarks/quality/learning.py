"""Plans from what earlier runs taught: ``python -m benchmarks.quality.learning --models digits video clothes``.

The first run of a model is planned by the general prior, fitted to the two other models (leave one out), or is made in full;
it is measured as it computes. Other samples are then run by a plan from what it taught. Rows are kept as they come.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks.quality import full_runs, methods
from benchmarks.quality.fit_prior import fitted
from benchmarks.quality.measure import psnr
from benchmarks.quality.models import MODELS, LabModel
from benchmarks.quality.run import RESULTS, hushed
from benchmarks.quality.sampling import Job, generate

import magpolicy
import torch
from magpolicy import Calibration, Schedule
from magpolicy.calibration._prior import prior_calibration

STEPS, BUDGETS = 28, (14, 9)
SEEDS, SAMPLES = (11, 23, 37, 51), {"digits": 4, "video": 2, "clothes": 4}
TEACHERS = (301, 302, 303, 304)
"""Seeds of the runs that teach: one sample each, of another prompt each."""
