"""Finding what is attached to somebody's model, and taking it off, without the handle."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from magpolicy._errors import RunError
from magpolicy.hosts import _dispatch


def attached(target: Any) -> tuple[Any, ...]:
    """The handles that are attached to a pipeline or a model, the oldest first.

    >>> magpolicy.attach(pipe, speedup=2.0)  # doctest: +SKIP
    >>> magpolicy.attached(pipe)[0].report  # doctest: +SKIP

    Args:
        target: what :func:`magpolicy.attach` takes. A pipeline has one handle at most. A model has its own, and those of the
            pipelines that share it.

    Raises:
        AdapterError: no installed adapter knows ``target``.
    """
    return _dispatch.attached(target)


def detach(target: Any) -> int:
    """Take off every handle of a pipeline or a model, and leave it as it was before. You need no handle for it.

    Other pipelines that share the model of a pipeline stay attached. Of a model, all handles go, also those of pipelines.

    >>> magpolicy.detach(pipe)  # doctest: +SKIP

    Args:
        target: what :func:`magpolicy.attach` takes.

    Returns:
        The number of handles that were on it; 0 if there was none.

    Raises:
        RunError: a run is under way. Nothing was detached.
        AdapterError: no installed adapter knows ``target``. A plugin that fails to say if it does is warned of, where another
            one knows it (:class:`magpolicy.PluginWarning`).
    """
    with _dispatch.changing:
        handles = _dispatch.attached(target)
        if any(getattr(handle, "running", False) for handle in handles):
            raise RunError(f"detach(): a run is under way on this {type(target).__name__}; let it come to its end first")
        with ExitStack() as every_one:  # one that fails leaves none of the others on
            for handle in reversed(handles):
                every_one.callback(handle.detach)
    return len(handles)
