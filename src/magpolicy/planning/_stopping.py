"""Planning that nobody waits for any more: it looks now and then whether it is to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from magpolicy._errors import MagPolicyError

_asked: ContextVar[Callable[[], bool] | None] = ContextVar("magpolicy_planning_stops", default=None)


class PlanningStopped(MagPolicyError):
    """Planning was told to stop; there is no plan."""

    __module__ = "magpolicy.adapter"


@contextmanager
def stop_planning_when(asked: Callable[[], bool]) -> Iterator[None]:
    """Stop plans that are made inside, in this thread or task, once ``asked`` says so.

    A host that shows plans while its user turns knobs gives up those that are out of date.

    Raises:
        PlanningStopped: it said so. No plan is kept then.
    """
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def look_whether_to_stop() -> None:
    """Called wherever planning has done a part that takes a millisecond or so.

    Raises:
        PlanningStopped: it is to stop.
    """
    asked = _asked.get()
    if asked is not None and asked():
        raise PlanningStopped("the plan was given up: nobody waits for it any more")
