"""Names of the streams of a call: told by ``cache_context``, else by what the call is conditioned on, then by call order."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from magpolicy_diffusers._arguments import Fingerprints
from magpolicy_torch.adapter import StreamNamer
from torch import Tensor

if TYPE_CHECKING:
    from magpolicy_diffusers._denoiser import DenoiserCall

BATCHED = ("cond_uncond",)
"""Names that pipelines give to a call whether it holds one condition or two."""
_COND_FIRST = ("DiTPipeline", "ZImage", "AceStep", "StableCascade")
"""Pipelines (or families) that put the conditional half of a batch first; the others put it last."""


def samples(latents: Any) -> int:
    """Samples in a batch: rows of a tensor, items of a list."""
    if isinstance(latents, Tensor):
        return latents.shape[0] if latents.ndim else 1
    return len(latents) if isinstance(latents, (list, tuple)) else 1


def copies(latents: Any, guided: bool | None) -> int:
    """How often a batch holds the same samples: 1, or the number of conditions they are evaluated under.

    ``guided``: whether there is guidance, where that is known: without it, equal samples of several prompts stay one stream.
    """
    size = samples(latents)
    for count in {None: (4, 3, 2), True: (2, 3, 4), False: ()}[guided]:
        if size % count == 0:
            each = size // count
            parts = [latents[i * each : (i + 1) * each] for i in range(count)]
            if all(_same(parts[0], part) for part in parts[1:]):
                return count
    return 1


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return all(map(_same, one, other))
    return one is other


def _some(latents: Any) -> Tensor | None:
    """A few numbers of a batch of latents, to tell it from others."""
    if isinstance(latents, (list, tuple)) and latents:
        latents = latents[0]
    if not isinstance(latents, Tensor) or not latents.numel():
        return None
    flat = latents.detach().reshape(-1)
    return flat[:: max(flat.shape[0] // 64, 1)].clone()


class StreamNames(StreamNamer):
    """Names the streams of one run.

    Args:
        pipe: the pipeline whose calls these are; ``None`` in the user's own loop.
    """

    def __init__(self, pipe: Any = None) -> None:
        super().__init__()
        self.pipe = pipe
        self._fingerprints = Fingerprints()
        self._calls: dict[Hashable, tuple[str, ...]] = {}
        self.counted = True
        """Whether something tells where a step begins."""
        self._guided: tuple[Any, Any] = (None, None)  # whether there was guidance at the step before, and whether there is
        self._latents: dict[tuple[str, ...], Tensor | None] = {}  # a few numbers of those evaluated last

    def conditions_of(self, call: DenoiserCall, step: int | None = None) -> tuple[str, ...]:
        """Names for the conditions of a call that nobody named.

        Parts of the batch that are equal are one sample under several conditions. A condition that is new, at the place in the
        step where another one was that has not come yet, takes its place and its name.
        """
        if step is None or step != self._step:
            self.go_to(step)
            self._guided = self._guided[1], getattr(self.pipe, "do_classifier_free_guidance", None)
        latents, condition = call.latents(), call.condition()
        rows = samples(latents)
        key = rows, self._key(condition, 0, rows)
        if key not in self._calls:  # looking at the latents waits for the device: once for each condition, not at each step
            self._calls[key] = self._parts(condition, rows, copies(latents, self._guided[1]))
        return self._calls[key]

    def next_evaluation(self, names: tuple[str, ...], step: int, latents: Any) -> bool:
        """Whether these are evaluated once more at a timestep, of other latents: by a sampler of second order, not in guidance.

        What comes several times at the run's first step already are other branches (tiles of a picture, say). It waits for
        the device only where something comes more often than there.
        """
        before, now = self._latents.get(names), _some(latents)
        self._latents[names] = now
        if before is None or now is None or not self.more_than_at_first(names, step):
            return False
        return before.shape != now.shape or not torch.equal(before, now)

    def moved(self, names: tuple[str, ...], latents: Any) -> bool:
        """Whether these were evaluated at the step under way already, and of other latents: the scheduler has made its step.

        It waits for the device at each call.
        """
        before, now = self._latents.get(names), _some(latents)
        self._latents[names] = now
        if before is None or now is None or not any(name in self.under_way for name in names):
            return False
        return before.shape != now.shape or not torch.equal(before, now)

    def _parts(self, condition: Mapping[str, Any], rows: int, count: int) -> tuple[str, ...]:
        # The first sample of a part stands for it: a condition stays itself when samples are added or left out.
        keys = [self._key(condition, part * rows // count, rows) for part in range(count)]
        if count == 1 or len(set(keys)) < count:
            return (self._name(keys[:1], 0),)
        order: Sequence[str | None] = (None,) * count
        if count == len(self.roles):
            order = self.roles if type(self.pipe).__name__.startswith(_COND_FIRST) else self.roles[::-1]
        before = [self._replaced(keys, place, role) for place, role in enumerate(order)]
        return tuple(self._name(keys, place, role, name) for place, (role, name) in enumerate(zip(order, before, strict=True)))

    def _name(self, keys: Sequence[Hashable], place: int, role: str | None = None, before: str | None = None) -> str:
        if found := self.known(keys[place]):
            return found
        if role is None:
            before = self._replaced(keys, place)
            # pipelines that evaluate conditions one by one begin with cond
            role = next((name for name in self.roles if name not in self.conditions), self.roles[0])
        if before is None:
            return self.condition(keys[place], role)
        self.becomes(before, keys[place])
        self._calls.clear()
        return before

    def _replaced(self, keys: Sequence[Hashable], place: int, role: str | None = None) -> str | None:
        """The name of the condition whose place one takes that is not known; ``None`` if it is one more."""
        if not self.counted or self._guided == (False, True):
            return None
        name = self.not_yet(place)
        if self._guided == (True, False) and len(keys) == 1:  # the one that is left
            name = next((each for each in self._before.values() if self.bases[each] == self.roles[0]), name)
        if name is None or name in map(self.known, keys) or role not in (None, self.bases[name]):
            return None
        return name

    def _key(self, condition: Mapping[str, Any], row: int, rows: int) -> Hashable:
        return tuple((name, self._fingerprints.of(value, row, rows)) for name, value in condition.items())
