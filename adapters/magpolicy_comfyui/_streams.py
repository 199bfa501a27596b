"""Which histories the samples of one call belong to: told by the conditions' own ids, never by the order of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import Factory, define

_NAMES = {"positive": "cond", "negative": "uncond"}
_BY_PLACE = ("cond", "uncond")


@define
class StreamNames:
    """Names of streams: ``cond``, ``uncond``, ``cond 2`` for a second positive condition, ``cond [0:16]`` for a context window,
    ``cond, again`` where a condition is evaluated twice in one step (guidance that perturbs the model)."""

    bases: dict[str, str] = Factory(dict)
    """Per name, the stream whose ratios it goes by."""
    _known: dict[Any, dict[str, str]] = Factory(dict)
    """Per id, the name by role: ComfyUI copies a condition with an area to the other side, id and all."""
    _seen: Counter[str] = Factory(Counter)

    @classmethod
    def of(cls, conditions: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> StreamNames:
        """Those of a guider's conditions."""
        streams = cls()
        for role, conds in conditions.items():
            for cond in conds or ():
                streams._add(cond.get("uuid"), _NAMES.get(role, role))
        return streams

    def begin_step(self) -> None:
        """Another step begins: every stream is called for the first time again."""
        self._seen.clear()

    def called(self, options: Mapping[str, Any], batch: int) -> list[str] | None:
        """The streams of one call of the model, in batch order; ``None`` if they cannot be told.

        Args:
            options: its transformer options.
            batch: samples in it.
        """
        uuids: Sequence[Any] = options.get("uuids") or ()
        places: Sequence[int] = options.get("cond_or_uncond") or ()
        if not uuids or batch % len(uuids) or len(places) != len(uuids):
            return None
        names = [self._name(uuid, place) for uuid, place in zip(uuids, places, strict=True)]
        window = _window(options)
        found = []
        for name in names:
            full = name + window
            self._seen[full] += 1
            count = self._seen[full]
            if count > 1:
                full += ", again" if count == 2 else f", again {count - 1}"
            self.bases[full] = self.bases[name]
            found.append(full)
        return found

    def _name(self, uuid: Any, place: int) -> str:
        roles = self._known.get(uuid, {})
        if len(roles) == 1:
            return next(iter(roles.values()))
        base = _BY_PLACE[place] if place < len(_BY_PLACE) else f"cond {place}"
        return roles.get(base) or self._add(uuid, base)

    def _add(self, uuid: Any, base: str) -> str:
        roles = self._known.setdefault(uuid, {})
        if base not in roles:
            name, number = base, 1
            while name in self.bases:
                number += 1
                name = f"{base} {number}"
            self.bases[name] = base
            roles[base] = name
        return roles[base]


def _window(options: Mapping[str, Any]) -> str:
    indices = getattr(options.get("context_window"), "index_list", None)
    if not indices:
        return ""
    first, last = indices[0], indices[-1]
    if list(indices) == list(range(first, last + 1)):
        return f" [{first}:{last + 1}]"
    return f" [{','.join(map(str, indices))}]"
