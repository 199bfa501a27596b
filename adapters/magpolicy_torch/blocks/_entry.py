"""What a block's own forward is given, where its host changes the arguments on the way to it.

Context parallelism hands the first block the whole sequence, and a hook on the block takes the share of this process (the plans
of Wan and Qwen-Image). The block returns a share; so what enters the stack is a share too, and not what the model passes. Such
hooks stand in a registry on the block, and say which arguments they change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from torch import nn

REGISTRIES = frozenset({"_diffusers_hook", "_hook_registry"})
"""The attributes under which a block keeps its hooks: diffusers' name, and vLLM-Omni's. A block without any has no entry."""


@frozen
class Entry:
    """The hooks of ``block`` that change what its own forward is given. They are run on skips too, where the block is not.

    ``entry(args, kwargs)`` gives the arguments as that forward has them. It changes neither ``args`` nor ``kwargs``.
    """

    block: nn.Module
    hooks: tuple[Any, ...]
    """In the order in which they run."""

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for hook in self.hooks:
            args, kwargs = hook.pre_forward(self.block, *args, **kwargs)
        return args, kwargs


def entry_of(block: nn.Module) -> Entry | None:
    """What is on the way into ``block`` now; ``None`` if nothing is that changes its arguments."""
    hooks = tuple(hook for _, hook in registered(block) if _changes_arguments(hook))
    return Entry(block, hooks) if hooks else None


def registered(block: nn.Module) -> Iterable[tuple[str, Any]]:
    """The hooks on ``block``, in the order in which they run, each with its name where it has one."""
    theirs = getattr(block, "_diffusers_hook", None)
    yield from reversed(list(getattr(theirs, "hooks", {}).items()))  # each stands around those before it
    yield from [("", hook) for hook in getattr(getattr(block, "_hook_registry", None), "_sorted_hooks", ())]


def _changes_arguments(hook: Any) -> bool:
    """Whether ``hook`` names the arguments that it changes, and does nothing else. Others do what only a block that runs needs:
    they fetch its weights, say."""
    named = getattr(hook, "metadata", None)
    return isinstance(named, Mapping) and any(isinstance(name, str) for name in named) and hasattr(hook, "pre_forward")
