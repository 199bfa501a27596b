"""Trying schedules out: what :func:`magpolicy.refine` runs, without a loop of the user's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from magpolicy import AdapterError, ArgumentError, PlanWarning, Schedule, attach, attached
from magpolicy_torch.device import _accelerator
from torch import Tensor, nn

Sample = Callable[[Any], Any]
"""Generates one sample with the handle it is given, the same noise each time, and returns its latents."""


def trial(
    model: nn.Module, loop: Sample, *, seeds: Sequence[int] = (0,), options: Mapping[str, Any] | None = None
) -> Callable[[Schedule], float]:
    """The function that :func:`magpolicy.refine` needs, for your own loop.

    >>> refined = magpolicy.refine(calibration, magpolicy_torch.trial(model, loop), speedup=2.0)  # doctest: +SKIP

    Args:
        model: the model that the loop calls. The function attaches to it for each schedule, and detaches afterwards.
        loop: ``loop(handle)`` generates one sample, its steps inside ``with handle.run(steps=...)``, and returns its latents.
            Noise from torch's common generators is the same each time.
        seeds: seeds of these generators; one sample for each.
        options: further arguments of :func:`magpolicy.attach`, such as ``blocks`` or ``scope``.

    Returns:
        A function that runs a schedule, and returns the mean squared difference of the samples from those of the full run;
        that one is made once, before the first schedule.

    Raises:
        ArgumentError: an argument cannot be used.
        AdapterError: the model is attached already, or cannot be attached to. Also later, before anything is run.
    """
    return Trial(model, [_seeded(loop, seed) for seed in checked_seeds(seeds)], options)


class Trial:
    """Runs schedules on a few samples, and tells how far off each is."""

    def __init__(self, target: Any, samples: Sequence[Sample], options: Mapping[str, Any] | None = None) -> None:
        self._target, self._samples, self._options = target, tuple(samples), dict(options or {})
        if "schedule" in self._options:
            raise ArgumentError("options['schedule'] is given: the trial runs the schedules it is called with; leave it out")
        self._full: dict[tuple[int, int], list[list[Tensor]]] = {}
        self._check_free()
        with attach(target, schedule=Schedule.from_mask([True]), **self._options):
            pass  # what cannot be driven is said now

    def __call__(self, schedule: Schedule) -> float:
        """The mean squared difference from the full run; nan or infinite where a sample is.

        Raises:
            AdapterError: something was attached to the target since.
            ArgumentError: the sample is made in another number of steps than the schedule has.
        """
        self._check_free()
        key = schedule.first_step, schedule.steps
        if key not in self._full:
            every = {name: [True] * schedule.steps for name in schedule.streams}
            self._full[key] = list(self._run(Schedule.from_mask(every, first_step=schedule.first_step)))
        pairs = zip(self._run(schedule), self._full[key], strict=True)
        errors = [float((a - b).square().mean()) for found, full in pairs for a, b in zip(found, full, strict=True)]
        return sum(errors) / len(errors)

    def _check_free(self) -> None:
        """Make sure that no handle of the user's would be replaced."""
        try:
            handles = attached(self._target)
        except AdapterError:  # an adapter that does not say
            return
        if handles:
            raise AdapterError(f"target={type(self._target).__name__} is attached already; detach() its handle first")

    def _run(self, schedule: Schedule) -> Iterator[list[Tensor]]:
        """The latents of each sample."""
        for sample in self._samples:
            with attach(self._target, schedule=schedule, **self._options) as handle, torch.no_grad():
                with warnings.catch_warnings():
                    warnings.simplefilter("error", PlanWarning)  # another schedule than the one to try would run
                    try:
                        made = sample(handle)
                    except PlanWarning as stretched:
                        raise ArgumentError(str(stretched)) from None
                found = [latents.detach().cpu().double() for latents in _tensors(made)]
                if not found:
                    raise ArgumentError("the sample holds no tensor to compare; return the latents")
                said = any(getattr(run, "in_vain", "") for run in handle.runs)  # by the handle, at the end of a run
                if (computed := handle.report.computed) > schedule.computed and not said:
                    warnings.warn(
                        f"{computed} steps were computed, {schedule.computed} planned: {handle.report.reasons}", stacklevel=3
                    )
            yield found


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """The seeds, at least one.

    Raises:
        ArgumentError: there is none, or one is no whole number.
    """
    found = tuple(seeds) if isinstance(seeds, Iterable) else ()
    if not found or not all(isinstance(seed, int) for seed in found):
        raise ArgumentError(f"seeds={seeds!r} must be whole numbers, at least one; try seeds=(0,)")
    return found


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's common generators seeded, and left as they were."""
    with _accelerator.forked(_accelerator.devices()):
        torch.manual_seed(seed)
        yield


def _seeded(loop: Sample, seed: int) -> Sample:
    def sample(handle: Any) -> Any:
        with seeded(seed):
            return loop(handle)

    return sample


def _tensors(result: Any) -> Iterator[Tensor]:
    """What is in a loop's or a pipeline's result that can be compared."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        result = list(result.values())
    elif hasattr(result, "__array__"):
        yield torch.as_tensor(result)
    if isinstance(result, list | tuple):
        for part in result:
            yield from _tensors(part)
