"""Handing a target to the first adapter that knows it."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from magpolicy._errors import AdapterError, MagPolicyError
from magpolicy.plugin_system._registry import in_words, plugins, registry, warn_of_failure

changing = threading.RLock()
"""Held while something is attached or detached: what is attached is looked up, and then replaced."""


def preset_for(target: Any) -> Any:
    """The preset that the first adapter which knows ``target`` has for it; ``None`` if none does."""
    return _first("preset_for", target, {"target": target})


def attach(target: Any, request: Any) -> Any:
    """The handle of the first adapter that takes ``target``.

    Raises:
        AdapterError: none does.
    """
    with changing:
        handle = _first("attach", target, {"target": target, "request": request})
    if handle is not None:
        return handle
    unused = [f"{info.name} ({info.problem})" for info in plugins() if info.problem]
    hint = f"; not in use: {', '.join(unused)}" if unused else ""
    raise AdapterError(
        f"target={_kind(target)} is nothing an installed adapter can drive; pass what denoises: a pipeline, its transformer "
        f"or unet, another torch.nn.Module, or a host object whose adapter is installed{hint}"
    )


def attached(target: Any) -> tuple[Any, ...]:
    """The handles on ``target``, of all adapters. One that fails is warned of, where another one knows the target: whoever
    wants a handle taken off is not to be stopped by a plugin that has none.

    Raises:
        AdapterError: no adapter knows it, or none that does can say.
    """
    found: list[Any] = []
    failed: list[tuple[str, Exception]] = []
    known = False
    for name, caller in registry().implementing("attached"):
        try:
            for answer in caller(target=target):  # one at most: of a plugin that does not know the target there is none
                found.extend(tuple(answer))
                known = True
        except Exception as error:
            failed.append((name, error))
    for name, failure in failed:
        if not known:
            _raise_told(name, failure, target)
        warn_of_failure(name, "attached", failure)
    if not known:
        raise AdapterError(
            f"target={_kind(target)} is nothing that an installed adapter can look up; pass what was given to attach, or use "
            "its handle: handle.detach()"
        )
    return tuple(found)


def compiled(target: Any, request: Any) -> Any:
    """``target``, compiled by the first adapter that takes it.

    Raises:
        AdapterError: none does.
    """
    result = _first("compile", target, {"target": target, "request": request})
    if result is None:
        raise AdapterError(f"target={_kind(target)} is nothing an installed adapter can compile; pass a torch.nn.Module")
    return result


def _first(hook: str, target: Any, values: dict[str, Any]) -> Any:
    """What the first adapter answers that does not answer ``None``."""
    for name, caller in registry().implementing(hook):
        try:
            answer = caller(**values)
        except Exception as error:
            _raise_told(name, error, target)
        if answer is not None:
            return answer
    return None


def _raise_told(name: str, error: Exception, target: Any) -> NoReturn:
    """Raise what the plugin of that name failed with: the error itself where it was meant for the user."""
    if isinstance(error, MagPolicyError):
        raise error
    raise AdapterError(f"target: plugin {name} failed on {_kind(target)}: {in_words(error)}") from error


def _kind(target: Any) -> str:
    return f"{type(target).__module__}.{type(target).__qualname__}"
