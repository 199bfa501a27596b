"""Measure every row and keep the figures: ``python -m benchmarks.quality run --model digits --sampler euler``.

Rows are kept as they come, one file a model and sampler, and not measured again unless ``--again`` names their part.
"""

from __future__ import annotations

import json
import logging
import platform
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.quality import data
from benchmarks.quality.measure import Judge
from benchmarks.quality.methods import Bench
from benchmarks.quality.models import MODELS
from benchmarks.quality.sweep import KINDS, PEER, Trial, trials

import diffusers
import torch

RESULTS = data.CACHE / "results"
COUNTS = {"digits": 10, "video": 5, "clothes": 10}
PARTS = ("baselines", "others", "forecasts", "ours")


def key_of(trial: Trial) -> str:
    settings = {name: value for name, value in trial.settings.items() if name != "strip"}
    return f"{trial.method} {json.dumps(settings, sort_keys=True)}"


def kept(path: Path) -> dict[str, Any]:
    """The rows measured so far."""
    rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}
    return rows


def path_of(model: str, sampler: str) -> Path:
    return RESULTS / f"{model}-{sampler}.json"


@contextmanager
def hushed() -> Any:
    """Without the advice other libraries print."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def about(bench: Bench) -> dict[str, Any]:
    return {
        "model": bench.model.name,
        "title": bench.model.title,
        "steps": bench.steps,
        "sampler": bench.job.sampler,
        "samples": len(bench.job.noise),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def measure(
    model: str, sampler: str, parts: Sequence[str] = PARTS, again: Iterable[str] = (), methods: Collection[str] = KINDS
) -> None:
    """Measure the rows of ``parts`` and ``methods`` that are not known yet, and those of ``again`` anew."""
    torch.set_num_threads(1)
    path = path_of(model, sampler)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = kept(path)
    with hushed():
        bench = Bench.of(MODELS[model], sampler=sampler, count=COUNTS[model])
        judge = Judge.of(bench)
        rows = dict(known)
        rows["full"] = {"method": "full", "kind": "full", "settings": {}, **judge.row()}
        for part in parts:
            for trial in trials(bench, (part,)):
                key = key_of(trial)
                if trial.method not in methods or (key in rows and part not in again):
                    continue
                try:
                    figures = judge.row(None if trial.make is None else trial.make(), trial.job)
                except (AttributeError, AssertionError, TypeError, ValueError) as error:
                    if KINDS[trial.method] != PEER:
                        raise
                    print(f"{model} {sampler} {key}: fails, {error}", flush=True)
                    continue
                row = {"method": trial.method, "kind": KINDS[trial.method], "settings": trial.settings, **figures}
                print(f"{model} {sampler} {key}: {figures['fraction']:.3f} {figures['psnr']:.2f} dB", flush=True)
                rows = kept(path) | {"full": rows["full"], key: row}  # another process may measure other parts
                path.write_text(json.dumps({"about": about(bench), "rows": rows}, indent=1))
