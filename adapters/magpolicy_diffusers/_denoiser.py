"""One model of a pipeline that is attached to: its stack, its patches, and what its calls say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from magpolicy import AdapterError, AttachRequest
from magpolicy_diffusers._arguments import Arguments
from magpolicy_diffusers._block_stacks import find
from magpolicy_torch.blocks._patch import Patch
from magpolicy_torch.evaluation._interceptor import CallInterceptor, unwrapped
from magpolicy_torch.evaluation._model import HostModel
from magpolicy_torch.host._handle import checkpointing, stack_for
from torch import nn

Forward = Callable[..., Any]
_CACHE_HOOKS = ("mag_cache", "fbc_", "faster_cache", "pyramid_attention_broadcast", "sea_cache", "taylorseer_cache")


class Denoiser:
    """A model and its stack. Making one checks everything and changes nothing.

    Raises:
        AdapterError: another cache is enabled, it is attached already, or its blocks cannot be told.
        ArgumentError: an option that is not known here.
    """

    def __init__(self, target: nn.Module, request: AttachRequest, around: Callable[..., Any]) -> None:
        module = unwrapped(target)
        if (cache := other_cache(module)) is not None:
            raise AdapterError(f"{type(module).__name__} has another cache, {cache}; call its disable_cache() first")
        self.module = module
        self.stack = stack_for(module, request, find)
        self.arguments = Arguments(type(module).forward.__get__(module))
        self.scope = self.stack.scope
        self.channel_dim = 1 if self.scope == "model" else -1
        self._context: ContextVar[str | None] = ContextVar("magpolicy_cache_context", default=None)
        self.model = HostModel(module, self.stack)
        self._front = CallInterceptor(module, partial(around, self))
        named = hasattr(module, "cache_context")
        self._named = Patch(module, self._cache_context, "cache_context") if named else None

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def context(self) -> str | None:
        """The name that ``cache_context`` gave the call under way here."""
        return self._context.get()

    def must_compute(self) -> bool:
        """Whether nothing may be skipped for now: another cache was enabled since, or the backward pass runs blocks again."""
        return checkpointing(self.module) or (self._named is not None and self.module.is_cache_enabled)

    def install(self) -> None:
        """Put the patches on."""
        self.stack.claim()
        self._front.install()
        if self._named is not None:
            self._named.install()

    def remove(self) -> None:
        """Take them off."""
        if self._named is not None:
            self._named.remove()
        self._front.remove()
        self.stack.release()

    def _cache_context(self, original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = args[0] if args else kwargs.get("name")
        return _Within(original(*args, **kwargs), self._context, None if name is None else str(name))


class _Within:
    """``context``, with its name noted. No generator: it is around every call of a pipeline."""

    def __init__(self, context: Any, noted: ContextVar[str | None], name: str | None) -> None:
        self._context, self._noted, self._name = context, noted, name

    def __enter__(self) -> Any:
        value = self._context.__enter__()
        self._token = self._noted.set(self._name)
        return value

    def __exit__(self, *error: Any) -> Any:
        self._noted.reset(self._token)
        return self._context.__exit__(*error)


def other_cache(module: nn.Module) -> str | None:
    """The cache of diffusers that is enabled on ``module``, if any."""
    config = getattr(module, "_cache_config", None)
    if config is not None:
        return type(config).__name__
    for child in module.modules():
        hooks = getattr(getattr(child, "_diffusers_hook", None), "hooks", {})
        found = next((name for name in hooks if name.startswith(_CACHE_HOOKS)), None)
        if found is not None:
            return f"the hook {found!r}"
    return None
