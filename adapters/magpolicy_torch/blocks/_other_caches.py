"""Other caches on a model: whatever keeps something of one call for the next one, and may leave work out because of it."""

from __future__ import annotations

from collections.abc import Iterable

from magpolicy_torch.blocks._entry import REGISTRIES, registered
from torch import nn

_EXACT = ("text_kv_cache",)
"""Hooks that keep only what would be computed again just so."""
STANDS_IN = "which stands in for its blocks as cache-dit does"
"""What can be said of a cache that is no hook."""


def another_cache(modules: Iterable[nn.Module]) -> str:
    """The cache that is on one of these modules, in words; empty if none is.

    Caches of diffusers are hooks, and a hook that keeps something of a call for the next one says so. Others change the model
    in ways of their own; those show when the blocks run, or do not.
    """
    for module in modules:
        if not REGISTRIES.isdisjoint(module.__dict__):
            for name, hook in registered(module):
                if getattr(hook, "_is_stateful", False) and not name.startswith(_EXACT):
                    return f"the hook {name!r}"
    return ""


def cache_on(module: nn.Module) -> str:
    """The cache that is on a model or on a part of it, in words; empty if none is. Walks through all of the model."""
    found = another_cache(module.modules())
    config = getattr(module, "_cache_config", None)
    return type(config).__name__ if found and config is not None else found


def way_off(module: nn.Module, cache: str) -> str:
    """How to take ``cache`` off, in words."""
    if getattr(module, "_cache_config", None) is not None:
        return "call its disable_cache() first"
    name = cache.removeprefix("the hook ")
    return f"take it off first: diffusers.hooks.HookRegistry.check_if_exists_or_initialize(model).remove_hook({name})"
