"""Something that a handle keeps alive while it is attached, and not after that."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from magpolicy import RunError

T = TypeVar("T")


class Held(Generic[T]):
    """Keeps ``value`` alive until it is loosened; from then on it is here for as long as somebody else keeps it."""

    def __init__(self, value: T) -> None:
        self._value: T | None = value
        self._reference = weakref.ref(value)

    def get(self) -> T | None:
        """The value; ``None`` if it is gone."""
        return self._reference() if self._value is None else self._value

    def need(self, name: str) -> T:
        """The value, for an attribute of this name.

        Raises:
            RunError: it is gone.
        """
        found = self.get()
        if found is None:
            raise RunError(f"{name}: this handle is detached and keeps no model, and nobody else has kept it; attach again")
        return found

    def loosen(self) -> None:
        """Keep it no longer."""
        self._value = None
