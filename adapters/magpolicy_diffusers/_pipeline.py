"""Pipelines: their denoisers, and knowing when one is called."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import diffusers
from magpolicy_torch.evaluation._interceptor import unwrapped
from torch import nn

_NAMES = ("transformer", "transformer_2", "transformer_3", "unconditional_transformer", "prior", "dit", "unet", "model")
_lock = threading.Lock()
_around: WeakKeyDictionary[Any, Callable[[Callable[[], Any]], Any]] = WeakKeyDictionary()
_counts: dict[type, int] = {}


def pipeline_kinds() -> tuple[type, ...]:
    """The classes whose instances are pipelines."""
    kinds = [diffusers.DiffusionPipeline, getattr(diffusers, "ModularPipeline", None)]
    return tuple(kind for kind in kinds if isinstance(kind, type))


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's models that denoise, by component name: those of the names diffusers gives them."""
    found = {name: unwrapped(getattr(pipe, name, None)) for name in _NAMES}
    return {name: cast("nn.Module", module) for name, module in found.items() if isinstance(module, diffusers.ModelMixin)}


def watch(pipe: Any, around: Callable[[Callable[[], Any]], Any]) -> None:
    """Have ``around(call)`` in place of each call of ``pipe``; ``call()`` makes it.

    Calling an object looks at its class, so the class gets a ``__call__`` that passes other instances on. It goes when the last
    instance does.
    """
    kind = type(pipe)
    with _lock:
        if not _counts.get(kind):
            kind.__call__ = _watching(kind)
        _counts[kind] = _counts.get(kind, 0) + 1
        _around[pipe] = around


def unwatch(pipe: Any) -> None:
    """Undo :func:`watch`."""
    kind = type(pipe)
    with _lock:
        if _around.pop(pipe, None) is None:
            return
        _counts[kind] -= 1
        inherited, original = getattr(kind.__dict__.get("__call__"), "_magpolicy_original", (False, None))
        if _counts[kind] or original is None:  # somebody has wrapped it since: theirs stays, and ours only passes calls on
            return
        if inherited:
            del kind.__call__
        else:
            kind.__call__ = original


def _watching(kind: type) -> Callable[..., Any]:
    inherited, original = "__call__" not in kind.__dict__, kind.__call__

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        around = _around.get(self)
        call = functools.partial(original, self, *args, **kwargs)
        return call() if around is None else around(call)

    __call__._magpolicy_original = inherited, original  # type: ignore[attr-defined]
    return __call__
