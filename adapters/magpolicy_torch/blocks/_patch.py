"""Wrapping a module's forward from outside, so that it can be undone without a trace."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``(original forward, args, kwargs) -> result``"""

_ABSENT = object()


class Patch:
    """Stands in ``module.__dict__[name]``, in front of a method, and hands each call to ``around``.

    An object and not a function, so that copying and pickling the module give back a module that is not attached: the
    copy gets the original forward, bound to the copy.
    """

    def __init__(self, module: nn.Module, around: Around, name: str = "forward") -> None:
        self._module = module
        self._name = name
        self._around: Around | None = around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._around is None:
            return self._original(*args, **kwargs)
        return self._around(self._original, args, kwargs)

    @property
    def found(self) -> Any:
        """What was set on the instance before, ``None`` if nothing."""
        return None if self._before is _ABSENT else self._before

    def install(self) -> None:
        """Take the method's place."""
        self._before = self._module.__dict__.get(self._name, _ABSENT)  # e.g. accelerate's hooks live there too
        self._original = getattr(self._module, self._name)
        # For inspect.signature of it; `updated` empty: the original may be one of us, with our attributes.
        functools.update_wrapper(self, self._original, updated=())
        # Not setattr: this must not depend on what a module class does on attribute assignment.
        self._module.__dict__[self._name] = self

    def remove(self) -> None:
        """Give the place back exactly as it was.

        If somebody has wrapped us since, their wrapper stays and we only pass calls on from now.
        """
        self._around = None
        if self._module.__dict__.get(self._name) is self:
            if self._before is _ABSENT:
                del self._module.__dict__[self._name]
            else:
                self._module.__dict__[self._name] = self._before

    @staticmethod
    def on(module: nn.Module) -> bool:
        """Whether a live patch of ours is on ``module``'s forward, also under somebody else's."""
        found = module.__dict__.get("forward")
        if found is None:
            return False
        found = inspect.unwrap(found, stop=lambda f: isinstance(f, Patch) and f._around is not None)
        return isinstance(found, Patch) and found._around is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._original, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._original,)


def _itself(value: Any) -> Any:
    return value
