"""What holds inside of a with block, for the thread or task that opened it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Generic, TypeVar

from attrs import define

T = TypeVar("T")


@define(eq=False)
class _Entry(Generic[T]):
    value: T
    outer: _Entry[T] | None
    over: bool = False


class Scoped(Generic[T]):
    """A variable with one value for each with block that is open in this context.

    A with block inside of a generator may be left in another context than it was entered in: by the garbage collector, or by an
    event loop that closes what is left. It is over then all the same, also where it was opened.
    """

    def __init__(self, name: str) -> None:
        self._entry: ContextVar[_Entry[T] | None] = ContextVar(name, default=None)

    def get(self) -> T | None:
        """The value of the innermost block that is open here; ``None`` outside of any."""
        entry = self._entry.get()
        while entry is not None and entry.over:
            entry = entry.outer
        return None if entry is None else entry.value

    @contextlib.contextmanager
    def set(self, value: T) -> Iterator[None]:
        """``value``, inside of this with block."""
        entry = _Entry(value, self._entry.get())
        token = self._entry.set(entry)
        try:
            yield
        finally:
            entry.over = True
            with contextlib.suppress(ValueError):  # we are in another context, whose value is not ours to change
                self._entry.reset(token)
