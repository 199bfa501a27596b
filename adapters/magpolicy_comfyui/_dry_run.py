"""Which evaluations a sampler is going to make: it is run once on a single number, with a model that returns nothing.

Samplers differ in how often they ask the model and at which noise levels between two steps; their own code is the only place
that says so. The dry run takes about as long as the sampler's bookkeeping. It is made twice, with different answers: a sampler
whose noise levels then are others follows what the model returns, and nothing is known of it ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import Factory, define, frozen

import torch
from magpolicy_torch.adapter import forked

MOST = 50  # evaluations for each step, before a sampler is taken to follow what the model returns


class _TooMany(Exception):
    pass


@frozen
class Evaluations:
    """The evaluations that a sampler is expected to make."""

    sigmas: tuple[float, ...]
    """The noise level of each."""
    steps: tuple[int, ...]
    """By each, how many steps the sampler has said to be through with."""
    known: bool = True
    """Whether its own code said so; else one evaluation a step is assumed."""
    follows: bool = False
    """Whether the sampler chooses its noise levels by what the model returns, so that this is only the number of its steps."""

    @classmethod
    def assumed(cls, sigmas: Any, *, follows: bool = False) -> Evaluations:
        """One a step."""
        listed = tuple(float(s) for s in sigmas[:-1])
        return cls(listed, tuple(range(len(listed))), known=False, follows=follows)


@define(eq=False)
class StepCount:
    """How many steps a sampler has said to be through with, by the number it gives its callback."""

    done: int = 0

    def before(self, callback: Callable[..., Any] | None) -> Callable[..., Any]:
        """A callback that counts, and then calls ``callback``."""

        def told(*args: Any, **kwargs: Any) -> Any:
            self.tell(*args)
            return None if callback is None else callback(*args, **kwargs)

        return told

    def tell(self, *args: Any) -> None:
        """Its callback was called."""
        self.done = int(args[0]) + 1 if args and isinstance(args[0], int) else self.done + 1


class NotingModel:
    """Stands where the guider stands: notes the noise levels, and returns nothing, or ``share`` of what it is given."""

    def __init__(self, guider: Any, limit: int, share: float = 0.0) -> None:
        self.inner_model = guider.inner_model
        self.evaluations: list[float] = []
        self.steps: list[int] = []
        self.count = StepCount()
        self._guider, self._limit, self._share = guider, limit, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)

    def __call__(self, x: Any, sigma: Any, model_options: Any = None, seed: Any = None, **_: Any) -> Any:
        if len(self.evaluations) >= self._limit:
            raise _TooMany
        self.evaluations.append(float(sigma.max()))
        self.steps.append(self.count.done)
        denoised = self._share * x if self._share else torch.zeros_like(x)
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


def dry_run(sampler: Any, guider: Any, sigmas: Any, seed: Any, dimensions: int) -> Evaluations:
    """The evaluations that ``sampler`` makes for ``sigmas``.

    Samplers from outside ComfyUI may do anything and are not run twice: one evaluation a step is assumed for them.
    """
    if not _known(sampler):
        return Evaluations.assumed(sigmas)
    try:
        with forked([sigmas.device]), torch.no_grad():
            return rehearse(sampler, guider, sigmas, seed, dimensions)
    except Exception:  # it will show in the real run if it is more than the dry run's fault
        return Evaluations.assumed(sigmas)


def rehearse(sampler: Any, guider: Any, sigmas: Any, seed: Any, dimensions: int) -> Evaluations:
    """The same of a sampler that may be run twice, whatever it raises. It may draw from PyTorch's common generator."""
    try:
        found = [_run(sampler, guider, sigmas, seed, dimensions, share) for share in (0.0, 0.5)]
    except _TooMany:
        return Evaluations.assumed(sigmas, follows=True)
    if not found[0].evaluations:
        return Evaluations.assumed(sigmas)
    if found[0].evaluations != found[1].evaluations:
        return Evaluations.assumed(sigmas, follows=True)
    return Evaluations(tuple(found[0].evaluations), tuple(found[0].steps))


def _run(sampler: Any, guider: Any, sigmas: Any, seed: Any, dimensions: int, share: float) -> NotingModel:
    model = NotingModel(guider, MOST * (len(sigmas) - 1), share)
    noise = torch.ones((1,) * dimensions, device=sigmas.device)
    extra = {"model_options": {"transformer_options": {"sample_sigmas": sigmas}}, "seed": seed}
    sampler.sample(model, sigmas, extra, model.count.tell, noise, torch.zeros_like(noise), None, True)
    return model


def _known(sampler: Any) -> bool:
    from comfy.samplers import KSAMPLER

    if type(sampler) is not KSAMPLER:
        return False
    module = getattr(sampler.sampler_function, "__module__", None) or ""
    return module.split(".")[0] in ("comfy", "comfy_extras")


@define(eq=False)
class Place:
    """Which of the expected evaluations each one is that a sampler makes.

    The model is not always told the level that the sampler lists: nodes shift it (more detail, less noise than there is). So an
    evaluation is first the next on the list if it has its level; or else the next on the list of the step that the sampler is
    at. What a sampler makes beyond that is none of them.
    """

    expected: Evaluations
    count: StepCount = Factory(StepCount)
    shifted: int = 0
    """Evaluations that had another level than the one on the list."""
    _next: int = 0

    def of(self, sigma: float) -> int | None:
        """The position of an evaluation that is made now, at ``sigma``; ``None``: it is none of those expected."""
        at = None if self.expected.follows else self._find(sigma)
        if at is not None:
            self.shifted += not _near(self.expected.sigmas[at], sigma)
            self._next = at + 1
        return at

    def _find(self, sigma: float) -> int | None:
        sigmas, steps = self.expected.sigmas, self.expected.steps
        left = range(self._next, len(sigmas))
        if left and _near(sigmas[self._next], sigma):
            return self._next
        found = next((index for index in left if steps[index] == self.count.done), None)
        if found is None and not self.count.done:  # it tells of no step
            found = next((index for index in left if _near(sigmas[index], sigma)), None)
        return found


def _near(listed: float, sigma: float) -> bool:
    return abs(listed - sigma) <= 1e-4 * max(abs(listed), 1e-3)
