"""Rows of PSNR at a half and a third of the work, a column a model: kept as they come, and printed as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

import numpy as np
from benchmarks.quality import full_runs
from benchmarks.quality.models import MODELS
from benchmarks.quality.run import RESULTS, hushed

import torch

STEPS, BUDGETS = 28, (14, 9)


def table(kind: str, labels: Sequence[str] = ()) -> str:
    """The figures as they stand in docs/explanation/quality.md; ``labels``: in this order, else as they were measured."""
    found = {name: json.loads((RESULTS / f"{kind}-{name}.json").read_text()) for name in full_runs.trained()}
    measured = dict.fromkeys(key.split(";")[0] for figures in found.values() for key in figures)
    lines = ["| | " + " | ".join(MODELS[name].title for name in found) + " |", "| --- " * (len(found) + 1) + "|"]
    for label in labels or measured:
        cells = [" / ".join(f"{figures.get(f'{label}; {k}', np.nan):.1f}" for k in BUDGETS) for figures in found.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_models(about: str | None, measure: Callable[[str], object]) -> None:
    """Measure each of the models asked for on the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--models", nargs="*", default=full_runs.trained(), choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with hushed():
        for name in options.models:
            measure(name)


def main(kind: str, about: str | None, measure: Callable[[str, str, bool], None], labels: Sequence[str] = ()) -> None:
    """Measure the rows asked for on the command line, and print all."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--models", nargs="*", default=full_runs.trained(), choices=list(MODELS))
    parser.add_argument("--only", default="", help="measure rows whose name holds this")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with hushed():
        for name in options.models:
            measure(name, options.only, options.again)
    print(table(kind, labels))
