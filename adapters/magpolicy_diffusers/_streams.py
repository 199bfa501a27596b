"""Names for the branches of guidance that nobody named: told apart by what they are conditioned on, then by call order."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from magpolicy_diffusers._arguments import Fingerprints
from torch import Tensor

_NAMES = ("cond", "uncond")  # the order in which diffusers' pipelines evaluate separate branches
MANY = 12


def samples(latents: Any) -> int:
    """Samples in a batch: rows of a tensor, items of a list."""
    if isinstance(latents, Tensor):
        return latents.shape[0] if latents.ndim else 1
    return len(latents) if isinstance(latents, (list, tuple)) else 1


def copies(latents: Any, guided: bool | None) -> int:
    """How often a batch holds the same samples: 1, or the number of conditions they are evaluated under.

    ``guided``: whether there is guidance, where that is known: without it, equal samples of several prompts stay one branch.
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


class StreamNames:
    """The branches of one run."""

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._names: dict[Hashable, str] = {}
        self._calls: dict[Hashable, tuple[str, ...]] = {}
        self._used: dict[str, int] = {}  # names used at the step under way, and how often

    def begin_step(self) -> None:
        """A new step: every branch is due once more."""
        self._used.clear()

    @property
    def used(self) -> frozenset[str]:
        """Streams evaluated at the step under way."""
        return frozenset(self._used)

    @property
    def repeated(self) -> list[str]:
        """Those of them that had the name of another."""
        again = {name for name, count in self._used.items() if count > 1}
        return [stream for stream in self._used if any(stream == name or stream.startswith(f"{name} ") for name in again)]

    @property
    def too_many(self) -> bool:
        """Whether there are so many that they cannot be branches of guidance: conditions that change at every step, or
        steps that could not be told apart."""
        return len(self._names) > MANY or len(self._used) > MANY

    def name(self, condition: Mapping[str, Any], latents: Any, order: Sequence[str], guided: bool | None) -> tuple[str, ...]:
        """The branches of a call that nobody named.

        Args:
            condition: the arguments that tell branches apart.
            latents: what is denoised. Parts of the batch that are equal are one sample under several conditions.
            order: the order in which two branches are batched.
            guided: whether there is guidance, where that is known.
        """
        rows = samples(latents)
        key = rows, self._key(condition, 0, rows)
        if key not in self._calls:  # looking at the latents waits for the device: once for each condition, not at each step
            self._calls[key] = self._parts(condition, rows, copies(latents, guided), order)
        return self.given(self._calls[key])

    def _parts(self, condition: Mapping[str, Any], rows: int, count: int, order: Sequence[str]) -> tuple[str, ...]:
        # The first sample of a part stands for it: a branch stays itself when samples are added or left out.
        keys = [self._key(condition, part * rows // count, rows) for part in range(count)]
        if count == 1 or len(set(keys)) < count:
            return (self._known(keys[0]),)
        firsts = order if count == len(order) else (None,) * count
        return tuple(self._known(part, first) for part, first in zip(keys, firsts, strict=True))

    def given(self, names: Sequence[str]) -> tuple[str, ...]:
        """The streams of a call with these names: one that was used at this step is another stream than the one before."""
        streams = []
        for name in names:
            self._used[name] = count = self._used.get(name, 0) + 1
            streams.append(name if count == 1 else f"{name} {count}")
        for stream in streams:
            self._used.setdefault(stream, 1)
        return tuple(streams)

    def _key(self, condition: Mapping[str, Any], row: int, rows: int) -> Hashable:
        return tuple((name, self._fingerprints.of(value, row, rows)) for name, value in condition.items())

    def _known(self, key: Hashable, first: str | None = None) -> str:
        if key not in self._names:
            taken = set(self._names.values())
            free = (n for n in ((first,) if first else ()) + _NAMES if n not in taken)
            self._names[key] = next(free, f"branch {len(taken) + 1}")
        return self._names[key]
