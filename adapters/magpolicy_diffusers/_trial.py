"""Trying schedules out on a pipeline: what :func:`magpolicy.refine` runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from magpolicy import ArgumentError, Schedule
from magpolicy_torch.adapter import Trial, checked_seeds, seeded


def trial(
    pipe: Any, *args: Any, seeds: Sequence[int] = (0,), options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Callable[[Schedule], float]:
    """What :func:`magpolicy.refine` needs to run schedules on a pipeline of diffusers.

    >>> run = magpolicy_diffusers.trial(pipe, "a cat", num_inference_steps=28, seeds=(0, 1))  # doctest: +SKIP
    >>> refined = magpolicy.refine(calibration, run, steps=28, speedup=2.0)  # doctest: +SKIP

    Args:
        pipe: the pipeline. It is attached to while a schedule is run, and left as it was after that.
        args: arguments of its call, and ``kwargs`` those by name. Latents are compared, so nothing is decoded.
        seeds: one sample for each, its noise drawn with that seed.
        options: further arguments of :func:`magpolicy.attach`, such as ``offload``.

    Returns:
        A function that runs a schedule, and returns the mean squared difference of the latents from those of the full run;
        that one is made once, before the first schedule.

    Raises:
        ArgumentError: an argument is of no use.
        AdapterError: something is attached to the pipeline already, or it cannot be driven. Also later, before anything is run.
    """
    takes = inspect.signature(type(pipe).__call__).parameters
    if kwargs.get("generator") is not None:
        raise ArgumentError("generator is given: each run needs the same noise; leave it out, and pass seeds=(0, 1)")
    if "output_type" in takes:
        kwargs.setdefault("output_type", "latent")
    return trial_of(pipe, [(args, kwargs, seed) for seed in checked_seeds(seeds)], options)


def trial_of(
    pipe: Any,
    calls: Sequence[tuple[Sequence[Any], Mapping[str, Any], int]],
    options: Mapping[str, Any] | None = None,
) -> Trial:
    """The same for any calls of ``pipe``: arguments, those by name, and the seed of each."""
    return Trial(pipe, [partial(_call, pipe, *call) for call in calls], options)


def _call(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int, handle: Any) -> Any:
    noise = {}
    if "generator" in inspect.signature(type(pipe).__call__).parameters:
        noise["generator"] = torch.Generator().manual_seed(seed)
    with seeded(seed):  # some draw without their generator
        return pipe(*args, **dict(kwargs) | noise)
