"""One model of a pipeline that is attached to: its stack, its patches, and one call of it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from attrs import define

from magpolicy import AdapterError, AttachRequest
from magpolicy_diffusers._arguments import Arguments
from magpolicy_diffusers._block_stacks import stack_of
from magpolicy_torch.adapter import CallInterceptor, HostCall, HostModel, Patch, Scoped, Times, stack_for, unwrap
from torch import nn

if TYPE_CHECKING:
    from magpolicy_diffusers._runs import RunDriver

Forward = Callable[..., Any]
_CACHE_HOOKS = ("mag_cache", "fbc_", "faster_cache", "pyramid_attention_broadcast", "sea_cache", "taylorseer_cache")


class Denoiser:
    """A model and its stack. Making one checks everything and changes nothing.

    Args:
        target: the model, or what ``torch.compile`` made of it.
        request: what was asked of the handle.
        driver: says, for each context, which run a call belongs to.
        streams: the user's names for the streams of a call.
        otherwise: asked for a driver where there is none; ``None`` means that the call is to compute.

    Raises:
        AdapterError: another cache is enabled, it is attached already, or its blocks cannot be told.
        ArgumentError: an option that is not known here.
    """

    def __init__(
        self,
        target: nn.Module,
        request: AttachRequest,
        driver: Scoped[RunDriver],
        streams: Scoped[tuple[str, ...]],
        otherwise: Callable[[Denoiser], RunDriver | None],
    ) -> None:
        module = unwrap(target)
        if (cache := other_cache(module)) is not None:
            raise AdapterError(f"{type(module).__name__} has another cache, {cache}; call its disable_cache() first")
        self.module = module
        self.name = type(module).__name__
        self.stack = stack_for(module, request, stack_of)
        self.arguments = Arguments(type(module).forward.__get__(module))
        self.model = HostModel(module, self.stack)
        self.context: ContextVar[str | None] = ContextVar("magpolicy_cache_context", default=None)
        """The name that ``cache_context`` gave the call under way."""
        self._driver, self._streams, self._otherwise = driver, streams, otherwise
        self._interceptor = CallInterceptor(module, self._called)
        self.takes_cache = hasattr(module, "cache_context")
        """Whether diffusers' caches can be enabled on it, and its calls be named."""
        self._named = _NamesCalls(module, self.context) if self.takes_cache else None

    def install(self) -> None:
        """Put the patches on."""
        self.stack.claim()
        self._interceptor.install()
        if self._named is not None:
            self._named.install()

    def remove(self) -> None:
        """Take them off."""
        if self._named is not None:
            self._named.remove()
        self._interceptor.remove()
        self.stack.release()

    def _called(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of each call of the model."""
        call = DenoiserCall(self, original, args, kwargs)
        if self.model.under_way or (self.arguments.caches and call.fills_cache):  # it calls itself, or is no step
            return call.compute()
        driver, streams = self._driver.get() or self._otherwise(self), self._streams.get()
        return call.compute() if driver is None else driver.call(call, streams)


@define
class DenoiserCall:
    """One call of a denoiser, and what its arguments say, each of them read when it is asked for."""

    denoiser: Denoiser
    original: HostCall
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def fills_cache(self) -> bool:
        """Whether it fills a key-value cache for later ones: it must compute, and is no step."""
        return self.denoiser.arguments.fills_cache(self.args, self.kwargs)

    def timestep(self) -> Times | None:
        """The timestep as the model is given it; waits for the device."""
        return self.denoiser.arguments.timestep(self.args, self.kwargs)

    def condition(self) -> dict[str, Any]:
        """The arguments that tell streams apart."""
        return self.denoiser.arguments.condition(self.args, self.kwargs)

    def latents(self) -> Any:
        """What is denoised."""
        return self.denoiser.arguments.latents(self.args, self.kwargs)

    def compute(self) -> Any:
        """The call as it was to be made."""
        return self.original(*self.args, **self.kwargs)


class _NamesCalls(Patch):
    """In front of a model's ``cache_context``: notes the name that it gives to the calls inside."""

    def __init__(self, module: nn.Module, noted: ContextVar[str | None]) -> None:
        super().__init__(module, self._note, "cache_context")
        self._noted = noted

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._note(self._original, args, kwargs)

    def _note(self, original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = args[0] if args else kwargs.get("name")
        return _Within(original(*args, **kwargs), self._noted, None if name is None else str(name))


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
