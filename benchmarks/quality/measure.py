"""What one row of the comparison costs and how far it is from the full run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from attrs import define
from benchmarks.quality.bypass import blocks_of
from benchmarks.quality.methods import Bench
from benchmarks.quality.models import LabModel
from benchmarks.quality.sampling import Control, Job, generate
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from torch import Tensor, nn


@define
class Count:
    """Multiplications done in the linear layers of the blocks, the first block's apart: rules that probe always run it."""

    first: float = 0.0
    others: float = 0.0


@contextmanager
def counting(network: Any) -> Iterator[Count]:
    """Counts what is really computed, whoever bypasses what."""
    count, hooks = Count(), []

    def hook_for(part: str) -> Any:
        def hook(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
            setattr(count, part, getattr(count, part) + output.numel() * layer.in_features)

        return hook

    for index, block in enumerate(blocks_of(network)):
        part = "others" if index else "first"
        hooks += [m.register_forward_hook(hook_for(part)) for m in block.modules() if isinstance(m, nn.Linear)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def per_sample(model: LabModel, latents: Tensor) -> list[np.ndarray]:
    """Frames ``(frames, height, width)`` of each sample, in [0, 1]."""
    frames = model.to_frames(latents).numpy()
    return np.split(frames, len(latents))


def psnr(model: LabModel, made: Tensor, reference: Tensor) -> float:
    """Mean over samples, dB."""
    pairs = zip(per_sample(model, reference), per_sample(model, made), strict=True)
    with np.errstate(divide="ignore"):
        return float(np.mean([min(120.0, peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in pairs]))


def ssim(model: LabModel, made: Tensor, reference: Tensor) -> float:
    """Mean over frames."""
    frames = zip(model.to_frames(reference).numpy(), model.to_frames(made).numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, data_range=1.0) for a, b in frames]))


@define
class Judge:
    """Holds the full run and the 150-step reference; gives one row's figures."""

    bench: Bench
    full: Tensor
    reference: Tensor
    work: Count

    @classmethod
    def of(cls, bench: Bench, fine_steps: int = 150) -> Judge:
        job = bench.job
        with counting(bench.network) as work:
            full = generate(job, bench.network)
        fine = Job(job.model, job.noise, job.labels, fine_steps, job.sampler)
        return cls(bench, full, generate(fine, bench.network), work)

    def row(self, control: AbstractContextManager[Control] | None = None, job: Job | None = None) -> dict[str, float]:
        bench, job = self.bench, job or self.bench.job
        with counting(bench.network) as work:
            latents, seconds = self._timed(control, job)
        model = bench.model
        return {
            "fraction": work.others / self.work.others,
            "fraction_all": (work.first + work.others) / (self.work.first + self.work.others),
            "psnr": psnr(model, latents, self.full),
            "ssim": ssim(model, latents, self.full),
            "psnr_fine": psnr(model, latents, self.reference),
            "seconds": seconds,
        }

    def _timed(self, control: AbstractContextManager[Control] | None, job: Job) -> tuple[Tensor, float]:
        if control is None:
            started = time.perf_counter()
            return generate(job, self.bench.network), time.perf_counter() - started
        with control as entered:
            started = time.perf_counter()
            return generate(job, self.bench.network, entered), time.perf_counter() - started
