"""Which evaluations a sampler is going to make: it is run once on a single number, with a model that returns nothing.

Samplers differ in how often they ask the model and at which noise levels between two steps; their own code is the only place
that says so. The dry run takes about as long as the sampler's bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from magpolicy_torch.adapter import forked

MOST = 50  # evaluations for each step, before a sampler is taken to follow what the model returns


class _TooMany(Exception):
    pass


class NotingModel:
    """Stands where the guider stands: notes the noise levels, and returns nothing."""

    def __init__(self, guider: Any, limit: int) -> None:
        self.inner_model = guider.inner_model
        self.evaluations: list[float] = []
        self._guider, self._limit = guider, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Any, sigma: Any, model_options: Any = None, seed: Any = None, **_: Any) -> Any:
        if len(self.evaluations) >= self._limit:
            raise _TooMany
        self.evaluations.append(float(sigma.max()))
        denoised = torch.zeros_like(x)
        options = model_options or {}
        for hook in options.get("sampler_post_cfg_function", ()):  # of the sampler's own making, to look at the parts
            denoised = hook(
                {
                    "denoised": denoised,
                    "cond_denoised": denoised,
                    "uncond_denoised": denoised,
                    "cond": None,
                    "uncond": None,
                    "cond_scale": 1.0,
                    "model": self.inner_model,
                    "sigma": sigma,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised


def dry_run(sampler: Any, guider: Any, sigmas: Any, seed: Any, dimensions: int) -> tuple[list[float], bool]:
    """The sigma of each evaluation that ``sampler`` makes for ``sigmas``, and whether that is known rather than assumed.

    Samplers from outside ComfyUI may do anything and are not run twice: one evaluation a step is assumed for them.
    """
    listed: list[float] = [float(s) for s in sigmas[:-1]]
    if not _known(sampler):
        return listed, False
    model = NotingModel(guider, MOST * len(listed))
    noise = torch.ones((1,) * dimensions, device=sigmas.device)
    options = {"transformer_options": {"sample_sigmas": sigmas}}
    try:
        with forked([sigmas.device]), torch.no_grad():
            sampler.sample(
                model, sigmas, {"model_options": options, "seed": seed}, None, noise, torch.zeros_like(noise), None, True
            )
    except Exception:  # it will show in the real run if it is more than the dry run's fault
        return listed, False
    return (model.evaluations, True) if model.evaluations else (listed, False)


def _known(sampler: Any) -> bool:
    from comfy.samplers import KSAMPLER

    if type(sampler) is not KSAMPLER:
        return False
    module = getattr(sampler.sampler_function, "__module__", None) or ""
    return module.split(".")[0] in ("comfy", "comfy_extras")


def matches(planned: Sequence[float], at: int, sigma: float) -> int | None:
    """The position from ``at`` on whose evaluation is at ``sigma``."""
    for index in range(at, len(planned)):
        if abs(planned[index] - sigma) <= 1e-4 * max(abs(planned[index]), 1e-3):
            return index
    return None
