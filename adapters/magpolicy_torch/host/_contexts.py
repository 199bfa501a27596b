"""A value for each context (a thread, a task) that belongs to its owner and not to the context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class _Place:
    """A key that a context holds."""


_NOWHERE = _Place()


class ContextValue(Generic[T]):
    """Holds one value for each context. Values go when this object does.

    What is set in a context lives as long as the context, that of a program's main thread to the end, and no model may hang on
    that. So a context is given no more than a key.
    """

    def __init__(self, name: str) -> None:
        self._place: ContextVar[_Place] = ContextVar(name, default=_NOWHERE)
        self._values: WeakKeyDictionary[_Place, T] = WeakKeyDictionary()

    def get(self) -> T | None:
        """The value that holds here, if any."""
        return self._values.get(self._place.get())

    def set(self, value: T) -> None:
        """``value`` holds here from now on."""
        place = _Place()
        self._values[place] = value
        self._place.set(place)

    def everywhere(self) -> list[T]:
        """The values of all contexts that still exist."""
        return list(self._values.values())

    @contextlib.contextmanager
    def holding(self, value: T) -> Iterator[None]:
        """Inside, ``value`` holds here, and afterwards what held before.

        A with block in a generator may be left in another context than it was entered in. The value is then gone in both.
        """
        place = _Place()
        self._values[place] = value
        token = self._place.set(place)
        try:
            yield
        finally:
            del self._values[place]
            with contextlib.suppress(ValueError):
                self._place.reset(token)
