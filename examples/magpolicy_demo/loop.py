"""The demo's model in a loop of one's own, attached: two conditions a step, each its own stream."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import magpolicy
import torch
from magpolicy_demo import model as demo
from torch import Tensor

GUIDANCE = 2.0
DIGITS = 10


def guided(model: Any, handle: Any = None) -> demo.Denoiser:
    """The denoiser with classifier-free guidance: two evaluations a step, each its own stream."""

    def evaluate(stream: str, tokens: Tensor, sigma: float, labels: Tensor) -> Tensor:
        named: AbstractContextManager[Any] = nullcontext() if handle is None else handle.stream(stream)
        with named:
            return demo.velocity(model, tokens, torch.full((len(tokens),), sigma), labels)

    def denoise(tokens: Tensor, sigma: float, labels: Tensor) -> Tensor:
        cond = evaluate("cond", tokens, sigma, labels)
        uncond = evaluate("uncond", tokens, sigma, torch.full_like(labels, demo.NO_CLASS))
        return uncond + GUIDANCE * (cond - uncond)

    return denoise


def noise_for(seed: int, count: int) -> Tensor:
    """Starting noise of ``count`` images, ``(count, 49, 16)``."""
    return torch.randn(count, demo.GRID**2, demo.CHANNELS, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def calibrate(model: Any, steps: int, seed: int) -> magpolicy.Calibration:
    """What one sample in full says of the model."""
    sigmas = demo.sigmas_for(steps)
    label = torch.tensor([seed % DIGITS])
    with magpolicy.attach(model, calibrate=True) as handle:
        with handle.run(sigmas=sigmas):
            demo.euler(guided(model, handle), noise_for(seed + 1, 1), sigmas, label)
        calibration: magpolicy.Calibration = handle.calibration
    return calibration
