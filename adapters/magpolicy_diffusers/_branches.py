"""Names for the branches of guidance that nobody named: told apart by what they are conditioned on, then by call order."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from magpolicy_diffusers._arguments import Fingerprints

_NAMES = ("cond", "uncond")  # the order in which diffusers' pipelines evaluate separate branches
MANY = 12


class Branches:
    """The branches of one run."""

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._names: dict[Hashable, str] = {}
        self._used: dict[str, int] = {}  # names used at the step under way, and how often

    def begin_step(self) -> None:
        """A new step: every branch is due once more."""
        self._used.clear()

    @property
    def used(self) -> frozenset[str]:
        """Streams evaluated at the step under way."""
        return frozenset(self._used)

    @property
    def too_many(self) -> bool:
        """Whether there are so many that they cannot be branches of guidance: conditions that change at every step, or
        steps that could not be told apart."""
        return len(self._names) > MANY or len(self._used) > MANY

    def name(self, condition: Mapping[str, Any], batched: Sequence[str] = ()) -> tuple[str, ...]:
        """The branches of a call that nobody named; ``batched``: those it holds, if its parts turn out to differ."""
        keys = [self._key(condition, part, len(batched)) for part in range(len(batched))]
        if len(set(keys)) == len(batched) > 1:
            return self.given([self._known(key, first) for key, first in zip(keys, batched, strict=True)])
        return self.given([self._known(self._key(condition, 0, 1))])

    def given(self, names: Sequence[str]) -> tuple[str, ...]:
        """The streams of a call with these names: one that was used at this step is another stream than the one before."""
        streams = []
        for name in names:
            self._used[name] = count = self._used.get(name, 0) + 1
            streams.append(name if count == 1 else f"{name} {count}")
        for stream in streams:
            self._used.setdefault(stream, 1)
        return tuple(streams)

    def _key(self, condition: Mapping[str, Any], part: int, parts: int) -> Hashable:
        return tuple((name, self._fingerprints.of(value, part, parts)) for name, value in condition.items())

    def _known(self, key: Hashable, first: str | None = None) -> str:
        if key not in self._names:
            taken = set(self._names.values())
            free = (n for n in ((first,) if first else ()) + _NAMES if n not in taken)
            self._names[key] = next(free, f"branch {len(taken) + 1}")
        return self._names[key]
