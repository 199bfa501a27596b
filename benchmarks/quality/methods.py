"""Everything that is compared, each as a context that yields a `Control` for the sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from attrs import define
from benchmarks.quality import rules
from benchmarks.quality.bypass import Masked
from benchmarks.quality.forecasting import Correct, Forecast, Forecasting
from benchmarks.quality.models import LabModel
from benchmarks.quality.sampling import Job, generate

import magpolicy
import torch
from diffusers import CacheMixin


@define
class Bench:
    """A model, its network, what it generates, and the one calibration sample ours are made from."""

    model: LabModel
    network: Any
    job: Job
    calibration: magpolicy.Calibration
    polynomial: Sequence[float] = (1.0, 0.0)

    @classmethod
    def of(cls, model: LabModel, *, sampler: str = "euler", count: int = 10, steps: int | None = None) -> Bench:
        network = model.load()
        job = Job.of(model, seed=3, count=count, steps=steps, sampler=sampler)
        sample = calibration_job(model, steps=steps, sampler=sampler)
        fit = rules.TeaCacheFit(network)
        generate(sample, network, fit)
        return cls(model, network, job, calibrated(sample, network), fit.fit())

    @property
    def steps(self) -> int:
        return self.job.steps


def calibration_job(model: LabModel, *, seed: int = 101, start: int = 3, **options: Any) -> Job:
    """One sample, of another seed than those generated."""
    return Job.of(model, seed=seed, count=1, start=start, **options)


def calibrated(job: Job, network: Any, **options: Any) -> magpolicy.Calibration:
    """What a full run of ``job`` teaches."""
    with magpolicy.attach(network, calibrate=True, steps=job.steps, **options) as handle:
        generate(job, network, Attached(handle))
        made: magpolicy.Calibration = handle.calibration
    return made


class Attached:
    """A magpolicy handle as the loop's control."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def run(self, sigmas: list[float]) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.handle.run(sigmas=sigmas)
        return context

    def stream(self, name: str) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.handle.stream(name)
        return context


# Ours.


@contextmanager
def greedy(bench: Bench, **settings: Any) -> Iterator[Attached]:
    """The published rule on the measured curve, residual held."""
    with magpolicy.attach(bench.network, curve=bench.calibration.curve, **settings) as handle:
        yield Attached(handle)


@contextmanager
def scheduled(bench: Bench, schedule: magpolicy.Schedule, **settings: Any) -> Iterator[Attached]:
    with magpolicy.attach(bench.network, schedule=schedule, **settings) as handle:
        yield Attached(handle)


def planned(bench: Bench, computed: int, **settings: Any) -> magpolicy.Schedule:
    return magpolicy.plan(bench.calibration, computed=computed, guidance=bench.model.guidance, **settings)


# Baselines and ablations.


def uniform_mask(steps: int, computed: int, *, ends: bool) -> list[bool]:
    """Evenly spaced from the first step; with ``ends`` the last computes too, and the first two, for a forecast to start."""
    mask = np.zeros(steps, bool)
    if ends and computed > 2:
        mask[0] = True
        mask[np.floor(np.linspace(1, steps - 1, computed - 1) + 0.5).astype(int)] = True
    else:
        mask[np.floor(np.arange(computed) * steps / computed + 0.5).astype(int)] = True
    return mask.tolist()


def spread_masks(steps: int, computed: int, warm: Sequence[int] = (3, 4)) -> dict[str, list[bool]]:
    """Masks in which others' forecasts are tried: even ones, and some leading steps and then even ones."""
    masks = {"even": uniform_mask(steps, computed, ends=False), "even, ends": uniform_mask(steps, computed, ends=True)}
    for leading in (n for n in warm if n < computed - 1):
        for last in (steps - 1, steps):
            mask = np.arange(steps) < leading
            mask[
                np.floor(np.linspace(leading - 1, last, computed - leading + 1 + (last == steps))[1:] + 0.5).astype(int) % steps
            ] = True
            masks[f"{leading}, then even{', end' if last < steps else ''}"] = mask.tolist()
    return masks


# Others.


@contextmanager
def forecast(bench: Bench, mask: Sequence[bool], method: Forecast, correct: Correct | None = None) -> Iterator[Forecasting]:
    yield Forecasting(bench.network, mask, method, correct)


class Hooked:
    """diffusers' own caches: state by context name, reset at the start of a run."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @contextmanager
    def run(self, sigmas: list[float]) -> Iterator[None]:
        CacheMixin._reset_stateful_cache(self.network)
        yield

    def stream(self, name: str) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = CacheMixin.cache_context(self.network, name)
        return context


@contextmanager
def diffusers_cache(bench: Bench, config: Any) -> Iterator[Hooked]:
    """Called on the mixin: SD3's class works with the hooks, but does not offer them itself."""
    if not isinstance(bench.network, CacheMixin):
        bench.network._cache_config = None
        type(bench.network).is_cache_enabled = property(lambda network: network._cache_config is not None)
    CacheMixin.enable_cache(bench.network, config)
    try:
        yield Hooked(bench.network)
    finally:
        CacheMixin.disable_cache(bench.network)


def mag_cache(bench: Bench, *, threshold: float, max_skips: int, retention: float) -> AbstractContextManager[Hooked]:
    from diffusers import MagCacheConfig

    ratios = list(bench.calibration.curve.ratios["cond"])
    config = MagCacheConfig(
        threshold=threshold,
        max_skip_steps=max_skips,
        retention_ratio=retention,
        num_inference_steps=bench.steps,
        mag_ratios=ratios,
    )
    return diffusers_cache(bench, config)


def first_block_cache(bench: Bench, *, threshold: float) -> AbstractContextManager[Hooked]:
    from diffusers import FirstBlockCacheConfig

    return diffusers_cache(bench, FirstBlockCacheConfig(threshold=threshold))


def taylor_seer(
    bench: Bench, *, mode: str, interval: int, before: int, order: int, after: int | None = None
) -> AbstractContextManager[Hooked]:
    """``mode``: "default" (attention), "lite" (the output layer), or "blocks", a pattern of ours that matches whole blocks."""
    from diffusers import TaylorSeerCacheConfig

    blocks = r"(single_)?(transformer_)?blocks\.\d+"
    if "SD3" in type(bench.network).__name__:  # the last block returns no text, on which the hook fails; it computes
        blocks = rf"transformer_blocks\.[0-{len(bench.network.transformer_blocks) - 2}]"
    patterns = {"cache_identifiers": [blocks]} if mode == "blocks" else {}
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        disable_cache_after_step=after,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=mode == "lite",
        **patterns,
    )
    return diffusers_cache(bench, config)


class Refreshed:
    """cache-dit: its context is refreshed at the start of a run; streams are told apart by the order of calls."""

    def __init__(self, network: Any, refresh: Callable[[], None]) -> None:
        self.network, self.refresh = network, refresh

    @contextmanager
    def run(self, sigmas: list[float]) -> Iterator[None]:
        self.refresh()
        yield

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        yield


@contextmanager
def db_cache(
    bench: Bench, *, threshold: float, warmup: int, front: int = 1, order: int = 0, longest: int = -1
) -> Iterator[Refreshed]:
    """DBCache with so many front blocks computed, and TaylorSeer of that ``order`` on top if it isn't 0."""
    import cache_dit

    def configs() -> dict[str, Any]:
        made = cache_dit.DBCacheConfig(
            Fn_compute_blocks=front,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=warmup,
            max_continuous_cached_steps=longest,
            enable_separate_cfg=True,
            num_inference_steps=bench.steps,
        )
        # SD3's last block returns no text, on which the calibrator of the text stream fails.
        text = "SD3" not in type(bench.network).__name__
        calibrator = (
            cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order, enable_encoder_calibrator=text) if order else None
        )
        return {"cache_config": made, **({"calibrator_config": calibrator} if calibrator else {})}

    target = bench.network
    if "SD3" in type(target).__name__:  # known to cache-dit inside its pipeline only
        pattern = cache_dit.ForwardPattern.Pattern_1
        target = cache_dit.BlockAdapter(
            transformer=bench.network,
            blocks=bench.network.transformer_blocks,
            forward_pattern=pattern,
            check_forward_pattern=False,
            has_separate_cfg=True,
        )
    cache_dit.enable_cache(target, **configs())
    try:
        yield Refreshed(bench.network, lambda: cache_dit.refresh_context(bench.network, **configs()))
    finally:
        cache_dit.disable_cache(bench.network)


@contextmanager
def tea_cache(bench: Bench, *, threshold: float, fitted: bool) -> Iterator[rules.TeaCache]:
    yield rules.TeaCache(bench.network, threshold, bench.polynomial if fitted else (1.0, 0.0))


@contextmanager
def easy_cache(bench: Bench, *, threshold: float, warmup: int) -> Iterator[rules.EasyCache]:
    yield rules.EasyCache(bench.network, threshold, warmup)


@contextmanager
def held_mask(bench: Bench, mask: Sequence[bool]) -> Iterator[Masked]:
    yield Masked(bench.network, mask)
