"""The lists and dicts among a call's arguments, as they were before it."""

from __future__ import annotations

from typing import Any


class Containers:
    """Remembers what lists and dicts hold: a model may take things out of them, or put some in, and be called once more."""

    def __init__(self, *values: Any) -> None:
        self._before: list[tuple[Any, Any]] = []
        self._note(values)

    def restore(self) -> None:
        """Have them hold it again."""
        for container, before in self._before:
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                container.update(before)

    def _note(self, value: Any) -> None:
        if isinstance(value, list):
            self._before.append((value, list(value)))
        elif isinstance(value, dict):
            self._before.append((value, dict(value)))
            value = value.values()
        elif not isinstance(value, tuple):
            return
        for item in value:
            if isinstance(item, list | dict | tuple):
                self._note(item)
