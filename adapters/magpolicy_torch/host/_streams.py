"""Names of streams, the same in all hosts.

- ``cond`` and ``uncond``: the conditions of guidance. A second condition of the same role is ``cond 2``.
- ``cond, again``: the same condition, evaluated once more within one step (guidance that perturbs the model); then
  ``cond, again 2``.
- ``cond [0:16]``: one context window of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

MANY = 12
"""So many conditions, or so many evaluations within one step, are no guidance any more."""


def numbered(role: str, number: int) -> str:
    """The name of condition ``number`` of a role, counted from 1."""
    return role if number == 1 else f"{role} {number}"


def repeated(name: str, count: int) -> str:
    """The name of a stream at its evaluation ``count`` within one step, counted from 1."""
    return name if count == 1 else numbered(f"{name}, again", count - 1)


def windowed(name: str, frames: Sequence[int]) -> str:
    """The name of a stream in a context window over ``frames``; without any, ``name``."""
    if not frames:
        return name
    first, last = frames[0], frames[-1]
    if list(frames) == list(range(first, last + 1)):
        return f"{name} [{first}:{last + 1}]"
    return f"{name} [{','.join(map(str, frames))}]"


class StreamNamer:
    """Names the streams of one run: conditions that nobody named, and repeated evaluations within a step."""

    roles = ("cond", "uncond")
    """The conditions of guidance."""

    def __init__(self) -> None:
        self.bases: dict[str, str] = {}
        """Per name, the role it goes by: that of ``uncond 2`` and of ``uncond, again`` is ``uncond``."""
        self.conditions: set[str] = set()
        """Names of the conditions that were told by a key."""
        self.too_many = False
        """Whether there are so many that they cannot be those of guidance: conditions that change at every step, or steps that
        could not be told apart."""
        self._roles: dict[Hashable, dict[str, str]] = {}  # per key and role, the name
        self._step: int | None = None
        self._used: dict[str, str] = {}  # per stream of the step under way, the name that was evaluated
        self._before: dict[str, str] = {}  # the same of the step before
        self._counts: dict[str, int] = {}
        self._first: dict[str, int] = {}  # the same of the run's first step

    def go_to(self, step: int | None) -> None:
        """The calls to come are of this step; with another one than before, a step begins."""
        if step is not None and step != self._step:
            self._step = step
            self.begin_step()

    def begin_step(self) -> None:
        """Every stream is to be evaluated for the first time again."""
        self._before, self._used = self._used, {}
        self._first = self._first or dict(self._counts)
        self._counts.clear()

    def known(self, key: Hashable) -> str | None:
        """The name of the condition that ``key`` identifies, where it has one role only."""
        roles = self._roles.get(key, {})
        return next(iter(roles.values())) if len(roles) == 1 else None

    def condition(self, key: Hashable, role: str) -> str:
        """The name of the condition that ``key`` identifies: ``role``, or where another one has that name ``role 2``."""
        roles = self._roles.setdefault(key, {})
        if role not in roles:
            number = 1
            while (name := numbered(role, number)) in self.conditions:
                number += 1
            roles[role] = name
            self.bases[name] = role
            self.conditions.add(name)
        return roles[role]

    def becomes(self, name: str, key: Hashable) -> None:
        """From now on ``key`` identifies the condition of this name; the one that it was is gone."""
        role = self.bases[name]
        for before, roles in list(self._roles.items()):
            if roles.get(role) == name:
                del roles[role]
                if not roles:
                    del self._roles[before]
        self._roles.setdefault(key, {})[role] = name

    def not_yet(self, place: int) -> str | None:
        """The name that was evaluated at the step before where the one to come is now, ``place`` further in the same call;
        ``None`` if none was, or it was evaluated at this step already."""
        index, before = len(self._used) + place, list(self._before.values())
        name = before[index] if index < len(before) else None
        return None if name in self._used.values() else name

    def evaluated(self, names: Iterable[str], frames: Sequence[int] = (), step: int | None = None) -> tuple[str, ...]:
        """The streams of a call that evaluates these names. One that was evaluated at this step already is another stream.

        Args:
            names: what is evaluated, in batch order.
            frames: those of a context window, where it is evaluated in one.
            step: where another one is given than before, a step begins.
        """
        self.go_to(step)
        streams = []
        for name in names:
            base = self.bases.setdefault(name, name)
            if frames:
                name = windowed(name, frames)
            self._counts[name] = count = self._counts.get(name, 0) + 1
            stream = name if count == 1 else repeated(name, count)
            self.bases[stream], self._used[stream] = base, name
            streams.append(stream)
        self.too_many = len(self.conditions) > MANY or len(self._used) > MANY
        return tuple(streams)

    def named(self, streams: Iterable[str], step: int) -> None:
        """Note the streams of a call that were named by somebody else: they stay as they are, also where one comes again."""
        self.go_to(step)
        for name in streams:
            self._used[repeated(name, 1 + list(self._used.values()).count(name))] = name

    def more_than_at_first(self, names: Iterable[str], step: int) -> bool:
        """Whether all of these were evaluated at ``step`` already, as often as at the run's first step."""
        if step != self._step or not self._first:
            return False
        return all(self._counts.get(name, 0) >= self._first.get(name, 1) for name in names)

    @property
    def under_way(self) -> Iterable[str]:
        """The streams that were evaluated at the step under way."""
        return self._used.keys()

    @property
    def complete(self) -> bool:
        """Whether every stream of the step before was evaluated at the one under way."""
        return bool(self._before) and self._used.keys() >= self._before.keys()

    @property
    def repeats(self) -> list[str]:
        """The streams of the step under way whose name was evaluated more than once."""
        return [stream for stream, name in self._used.items() if self._counts.get(name, 0) > 1]
