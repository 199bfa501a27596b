"""The settings that are tried: others get the best of a sweep on the samples they are judged by, ours one plan a budget."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from attrs import frozen
from benchmarks.quality import forecasting, methods
from benchmarks.quality.fit_prior import gram_of
from benchmarks.quality.forecasting import Forecast
from benchmarks.quality.methods import Bench
from benchmarks.quality.sampling import Control, Job

import magpolicy


@frozen
class Trial:
    """One row before it is measured. ``make`` is None for a plain run of ``job``."""

    method: str
    settings: dict[str, Any]
    make: Callable[[], AbstractContextManager[Control]] | None = None
    job: Job | None = None


OURS, ABLATION, BASELINE, PEER = "ours", "ablation", "baseline", "other"
KINDS = {
    "plan": OURS,
    "plan, first order": OURS,
    "plan (latent), each forecast for itself": OURS,
    "plan for hold": OURS,
    "plan, run with hold": ABLATION,
    "uniform with ends, our forecast": ABLATION,
    "fewer steps": BASELINE,
    "uniform, hold": BASELINE,
    "published rule, hold": PEER,
    "diffusers MagCache": PEER,
    "diffusers FirstBlockCache": PEER,
    "diffusers TaylorSeer, default": PEER,
    "diffusers TaylorSeer, lite": PEER,
    "diffusers TaylorSeer, whole blocks": PEER,
    "cache-dit DBCache": PEER,
    "cache-dit DBCache + TaylorSeer": PEER,
    "TeaCache's rule": PEER,
    "EasyCache's rule": PEER,
    "HiCache's forecast": PEER,
    "FoCa's forecast": PEER,
    "Spectrum's forecast": PEER,
    "L2P's forecast": PEER,
}


def budgets(steps: int) -> list[int]:
    """Computed steps that are tried: a fifth to two thirds, with the three of the comparison among them."""
    return sorted({*range(-(-steps // 5), 2 * steps // 3 + 1, 4), *targets(steps)})


def targets(steps: int) -> list[int]:
    """Computed steps at 1/2, 2/5 and 1/3 of the run, rounded down."""
    return [steps // 2, 2 * steps // 5, steps // 3]


def ours(bench: Bench) -> Iterator[Trial]:
    for k in budgets(bench.steps):
        plan = methods.planned(bench, k)
        even = methods.uniform_mask(bench.steps, k, ends=True)
        yield _scheduled(bench, "plan", k, plan)
        yield _scheduled(bench, "plan, first order", k, methods.planned(bench, k, forecast="calibrated"))
        yield _scheduled(bench, "plan (latent), each forecast for itself", k, methods.planned(bench, k, objective="latent"))
        yield _scheduled(bench, "plan for hold", k, methods.planned(bench, k, forecast="hold"))
        yield _scheduled(bench, "plan, run with hold", k, plan, forecast="hold")
        forced = [i for i, computes in enumerate(even) if computes]
        yield _scheduled(bench, "uniform with ends, our forecast", k, methods.planned(bench, k, forced=forced))


def _scheduled(bench: Bench, method: str, k: int, schedule: magpolicy.Schedule, **options: Any) -> Trial:
    settings = {"computed": k, "strip": schedule.strip}
    return Trial(method, settings, lambda: methods.scheduled(bench, schedule, **options))


def baselines(bench: Bench) -> Iterator[Trial]:
    for k in budgets(bench.steps):
        job = bench.job
        yield Trial("fewer steps", {"steps": k}, job=Job(job.model, job.noise, job.labels, k, job.sampler))
        mask = methods.uniform_mask(bench.steps, k, ends=False)
        yield Trial("uniform, hold", {"computed": k}, lambda mask=mask: methods.held_mask(bench, mask))  # type: ignore[misc]


THRESHOLDS = tuple(float(f"{t:.3g}") for t in np.geomspace(0.01, 1.5, 28))


def magnitude_rules(bench: Bench, each: int = 3) -> Iterator[Trial]:
    """The published rule, here and in diffusers; of settings that decide alike one is run, ``each`` per number of steps."""
    curve = bench.calibration.curve
    for method, semantics in (("published rule, hold", None), ("diffusers MagCache", "diffusers")):
        seen: set[tuple[bool, ...]] = set()
        per_budget: dict[int, int] = {}
        for retention, skips, threshold in itertools.product((0.1, 0.2, 0.05), (1, 2, 3, 4, 6), THRESHOLDS):
            settings = {"threshold": threshold, "max_skips": skips, "retention": retention}
            schedule = magpolicy.simulate(curve, steps=bench.steps, semantics=semantics, **settings)
            k = schedule.computed
            if schedule.mask in seen or not bench.steps // 5 <= k <= 2 * bench.steps // 3 or per_budget.get(k, 0) >= each:
                continue
            seen.add(schedule.mask)
            per_budget[k] = per_budget.get(k, 0) + 1
            make = methods.greedy if semantics is None else methods.mag_cache
            yield Trial(method, settings, lambda make=make, settings=settings: make(bench, **settings))  # type: ignore[misc]


def grid(method: str, make: Callable[..., Any], bench: Bench, **axes: Sequence[Any]) -> Iterator[Trial]:
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        yield Trial(method, settings, lambda settings=settings: make(bench, **settings))  # type: ignore[misc]


def others(bench: Bench) -> Iterator[Trial]:
    """Strongest first, so that a run that is stopped early has what matters."""
    dbcache = {"threshold": _spread(0.1, 2.5, 10), "warmup": (2, 4), "longest": (-1, 2)}
    yield from grid("cache-dit DBCache + TaylorSeer", methods.db_cache, bench, order=(1, 2), **dbcache)
    taylor = {"interval": (2, 3, 4, 5), "before": (1, 2, 3, 4, 6), "order": (1, 2, 3)}
    for mode, name in (("blocks", "whole blocks"), ("lite", "lite")):
        yield from grid(f"diffusers TaylorSeer, {name}", methods.taylor_seer, bench, mode=(mode,), **taylor)
    yield from magnitude_rules(bench)
    yield from grid("diffusers FirstBlockCache", methods.first_block_cache, bench, threshold=_spread(0.05, 2.0, 14))
    last = {"interval": (2, 3, 4), "before": (2, 3, 4), "order": (1, 2), "after": (bench.steps - 1,)}
    yield from grid("diffusers TaylorSeer, whole blocks", methods.taylor_seer, bench, mode=("blocks",), **last)
    default = {"interval": (2, 3, 5), "before": (3,), "order": (1,)}
    yield from grid("diffusers TaylorSeer, default", methods.taylor_seer, bench, mode=("default",), **default)
    yield from grid("cache-dit DBCache", methods.db_cache, bench, **dbcache)
    yield from grid("TeaCache's rule", methods.tea_cache, bench, fitted=(False,), threshold=_spread(0.01, 1.0, 12))
    yield from grid("TeaCache's rule", methods.tea_cache, bench, fitted=(True,), threshold=_spread(0.1, 3.0, 12))
    yield from grid("EasyCache's rule", methods.easy_cache, bench, threshold=_spread(0.01, 0.3, 12), warmup=(2, 5))


def forecasts(bench: Bench) -> Iterator[Trial]:
    """Others' forecasts of the residual, by their formulas, each in several masks of exactly the budget."""
    for k in targets(bench.steps):
        for name, mask in methods.spread_masks(bench.steps, k).items():
            for method, settings, forecast in _forecasts(bench):
                make = functools.partial(methods.forecast, bench, mask, forecast)
                yield Trial(method, {"computed": k, "mask": name, **settings}, make)


def _forecasts(bench: Bench) -> Iterator[tuple[str, dict[str, Any], Forecast]]:
    for order, scale in itertools.product((1, 2), (0.5, 0.6, 0.7)):
        yield "HiCache's forecast", {"order": order, "scale": scale}, forecasting.hicache(order, scale)
    for reading in ("previous", "computed"):
        yield "FoCa's forecast", {"reading": reading}, forecasting.foca(reading)
    for ridge, share in itertools.product((0.1, 0.001), (1.0, 0.5)):
        method = forecasting.spectrum(bench.steps, ridge=ridge, share=share)
        yield "Spectrum's forecast", {"ridge": ridge, "share": share}, method
    grams = {stream: gram_of(bench.calibration, stream) for stream in bench.calibration.streams}
    for history in (2, 3, 4):
        yield "L2P's forecast", {"history": history}, forecasting.learned_linear(grams, history)


def _spread(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{t:.3g}") for t in np.geomspace(low, high, count))


def trials(bench: Bench, parts: Sequence[str] = ("baselines", "others", "forecasts", "ours")) -> Iterator[Trial]:
    for part in parts:
        yield from {"ours": ours, "baselines": baselines, "others": others, "forecasts": forecasts}[part](bench)
