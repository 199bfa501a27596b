"""A value for each context (a thread, a task) that belongs to its owner and not to the context."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from attrs import define, field

T = TypeVar("T")
_count = itertools.count(1)


@define(eq=False)
class _Key:
    """What a context holds of a value."""

    outer: _Key | None
    number: int = field(factory=lambda: next(_count), init=False)
    """Of all keys, the later one has the larger number."""


class Scoped(Generic[T]):
    """A variable with a value for each context (thread or task): that of the innermost open with block.

    A with block in a generator may end in another context than it began in: the garbage collector or an event loop may close
    the generator. The value then ends in both contexts.

    A context keeps its values as long as it exists; that of a program's main thread exists to the end, and must not keep a
    model alive. So a context holds only a key, and the values end with this object.
    """

    def __init__(self, name: str) -> None:
        self._key: ContextVar[_Key | None] = ContextVar(name, default=None)
        self._values: WeakKeyDictionary[_Key, T] = WeakKeyDictionary()

    def get(self) -> T | None:
        """The value in this context; ``None`` if there is none."""
        key = self._key.get()
        while key is not None:
            value = self._values.get(key)
            if value is not None:
                return value
            key = key.outer
        return None

    @property
    def since(self) -> int:
        """When the value in this context was set: of several variables, the one set last has the largest number. 0: none is."""
        key = self._key.get()
        while key is not None and key not in self._values:
            key = key.outer
        return 0 if key is None else key.number

    @contextlib.contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Set ``value`` for the time of the with block."""
        key, token = _Key(self._key.get()), None
        try:  # either of the two ends the value: an interruption of one leaves the other
            try:
                self._values[key] = value
                token = self._key.set(key)
                yield
            finally:
                self._values.pop(key, None)  # whatever the context holds: without its value a key stands for nothing
        finally:
            if token is not None:
                with contextlib.suppress(ValueError):  # we are in another context, whose value is not ours to change
                    self._key.reset(token)

    def keep(self, value: T) -> None:
        """Set ``value`` for as long as this object and the context exist."""
        key = _Key(None)
        self._values[key] = value
        self._key.set(key)

    def everywhere(self) -> list[T]:
        """The values of all contexts."""
        keys = [reference() for reference in self._values.keyrefs()]  # in one go: other threads may add to them
        return [value for key in keys if key is not None and (value := self._values.get(key)) is not None]
