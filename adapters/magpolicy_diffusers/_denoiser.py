"""One model that is attached to, by one handle or several: its stack, its patches, and one call of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from attrs import define

from magpolicy import AdapterError, AttachRequest
from magpolicy_diffusers._arguments import Arguments
from magpolicy_diffusers._block_stacks import stack_of
from magpolicy_torch.adapter import (
    BlockStack,
    CallInterceptor,
    HostCall,
    HostModel,
    Patch,
    PutOn,
    Scoped,
    Times,
    own_name,
    stack_for,
    unwrap,
)
from torch import nn

if TYPE_CHECKING:
    from magpolicy_diffusers._runs import RunDriver

Forward = Callable[..., Any]


class DenoiserUser(Protocol):
    """A handle, as the model it is attached to sees it."""

    driver: Scoped[RunDriver]
    """In each context, the run that is under way there."""
    named_streams: Scoped[tuple[str, ...]]
    """The user's names for the streams of a call."""

    @property
    def takes_strays(self) -> bool:
        """Whether it drives calls that come where no run is under way."""

    def stray(self, denoiser: Denoiser) -> RunDriver | None:
        """What drives such a call; ``None``: it computes."""


_lock = threading.RLock()  # a pipeline may be collected, and its handle leave, while another one comes
_in_use: WeakValueDictionary[int, Denoiser] = WeakValueDictionary()
"""By the model's id: a denoiser keeps its model, so that the id stays its own."""


class Denoiser:
    """A model that handles are attached to: its stack, and its patches. All handles on a model share one.

    Several pipelines may hold the model. A call belongs to the run that was begun last where the call is made (in its thread or
    task), whichever handle's it is.

    Making one checks everything and changes nothing; :meth:`of` does.

    Args:
        target: the model, or what ``torch.compile`` made of it.
        stack: its blocks.
    """

    def __init__(self, target: nn.Module, stack: BlockStack) -> None:
        module = unwrap(target)
        self.module, self.stack = module, stack
        self.name = own_name(module)
        self.arguments = Arguments(type(module).forward.__get__(module))
        self.model = HostModel(module, self.stack)
        self.context: ContextVar[str | None] = ContextVar("magpolicy_cache_context", default=None)
        """The name that ``cache_context`` gave the call under way."""
        self.takes_cache = hasattr(module, "cache_context")
        """Whether diffusers' caches can be enabled on it, and its calls be named."""
        self._users: list[DenoiserUser] = []
        self._patches: PutOn | None = None

    @classmethod
    def of(cls, target: nn.Module, request: AttachRequest, replaced: DenoiserUser | None = None) -> Denoiser:
        """That of a model, for one more handle.

        Args:
            target: the model, or what ``torch.compile`` made of it.
            request: what was asked of the handle.
            replaced: the handle whose place it takes.

        Raises:
            AdapterError: another cache is enabled, its blocks cannot be told, or other handles on it bypass other blocks.
            ArgumentError: an option that is not known here.
        """
        module = unwrap(target)
        found = _in_use.get(id(module))
        stack = stack_for(module, request, stack_of, held=None if found is None else found.stack)
        if found is None or found.stack.alike(stack):
            return found or cls(module, stack)
        if any(user is not replaced for user in found.users):
            raise AdapterError(
                f"{found.name} is attached already, and skips {found.stack.description} (scope={found.stack.scope!r}); handles "
                "that share a model have one scope and the same blocks: give these, or take the others off with "
                "magpolicy.detach()"
            )
        return cls(module, stack)

    @staticmethod
    def users_of(target: nn.Module) -> tuple[DenoiserUser, ...]:
        """The handles that are attached to a model."""
        found = _in_use.get(id(unwrap(target)))
        return () if found is None else found.users

    @property
    def users(self) -> tuple[DenoiserUser, ...]:
        """The handles that are attached to it, in the order in which they came."""
        return tuple(self._users)

    def enter(self, user: DenoiserUser) -> None:
        """One more handle; with the first one the patches are put on."""
        with _lock:
            self._users.append(user)
            if self._patches is None:
                patches: list[Any] = [CallInterceptor(self.module, self._called)]
                if self.takes_cache:
                    patches.append(_NamesCalls(self.module, self.context))
                self._patches = PutOn()
                pairs = [(patch.install, patch.remove) for patch in patches]
                self._patches.put_on((self.stack.claim, self.stack.release), *pairs)
                _in_use[id(self.module)] = self

    def leave(self, user: DenoiserUser) -> None:
        """One handle less; with the last one the model is left as it was. It does nothing where that handle is not on it."""
        with _lock:
            if user in self._users:
                self._users.remove(user)
            if not self._users and self._patches is not None:
                self._patches.take_off()
                if _in_use.get(id(self.module)) is self:
                    _in_use.pop(id(self.module), None)
                self._patches = None

    def _called(self, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of each call of the model."""
        call, users = DenoiserCall(self, original, args, kwargs), self._users
        # It calls itself, or it is no step, or the last handle has just left.
        if self.model.under_way or (self.arguments.caches and call.fills_cache) or not users:
            return call.compute()
        user = users[0] if len(users) == 1 else max(users, key=_claim)
        driver, streams = user.driver.get() or user.stray(self), user.named_streams.get()
        return call.compute() if driver is None else driver.call(call, streams)


def _claim(user: DenoiserUser) -> int:
    """The handle with the largest claim has the call: the one whose run here was begun last, or one that takes strays."""
    return user.driver.since or (0 if user.takes_strays else -1)


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
