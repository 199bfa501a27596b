"""The diffusion model of a sampling as it stands now: what of it is skipped, and one call of it at a time.

Clones of a ModelPatcher share the diffusion model, and whoever calls it between two of our calls is to find it as it is. So
what stands in front of it is there for the length of one call, and for the thread that makes that call alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from magpolicy_comfyui._block_stacks import stack_of
from magpolicy_torch.adapter import BlockStack, CallInterceptor, HostCall, HostModel, HostRun
from torch import Tensor, nn


class Denoiser:
    """One diffusion model, and the block stack that is skipped in it. Made for one run.

    Args:
        module: the diffusion model as it stands now; compiled blocks are taken as they are.
        channels: latent channels: of a model that is skipped as a whole, those of its output.

    Raises:
        AdapterError: its blocks cannot be told.
    """

    def __init__(self, module: nn.Module, channels: int) -> None:
        self.module = module
        found = stack_of(module)
        self._whole = None if found is not None else _Whole(channels)
        if self._whole is None:
            assert found is not None
            self.stack = found
            self._model = HostModel(module, self.stack, positional=_positional)
        else:
            self.stack = BlockStack.whole(self._whole)
            self._model = HostModel(self._whole, self.stack)
            self._model.works = tuple(module.children())  # the one block is called also where nothing in it runs
        self._held_by = _holders(module, self.stack)

    @property
    def current(self) -> bool:
        """Whether the model still holds the blocks it held; compiling and other nodes put others in their place."""
        return all(holder._modules.get(name) is block for holder, name, block in self._held_by)

    @property
    def busy(self) -> bool:
        """Whether somebody stands in front of it already: it is called from inside its own call."""
        return CallInterceptor.on(self.module)

    def evaluate(self, run: HostRun, streams: Sequence[str], call: Callable[[], Any], other_cache: str = "") -> Any:
        """``call()``, in which the first call of the model is the evaluation of ``streams`` at the step that ``run`` is at.

        Args:
            other_cache: why it computes because of another cache on the model, in words; empty if there is none.
        """
        with self._intercepted(partial(self._evaluate, run, streams, other_cache)):
            return call()

    @contextmanager
    def _intercepted(self, first: Callable[..., Any]) -> Iterator[None]:
        """Inside, ``first`` is called in the place of the first call of the model, and later ones go through."""
        calls, here = [first], threading.get_ident()

        def around(original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            ours = calls and threading.get_ident() == here
            return calls.pop()(original, args, kwargs) if ours else original(*args, **kwargs)

        interceptor = CallInterceptor(self.module, around)
        try:
            interceptor.install()
            yield
        finally:
            interceptor.remove()

    def _evaluate(
        self,
        run: HostRun,
        streams: Sequence[str],
        other_cache: str,
        original: HostCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self._whole is not None:
            sample = args[0] if args else kwargs.get("x")
            if not isinstance(sample, Tensor):
                return original(*args, **kwargs)
            original, args, kwargs = self._whole.called(sample, partial(original, *args, **kwargs))
        return run.evaluate(self._model, streams, original, args, kwargs, other_cache=other_cache)


def _positional(kwargs: Mapping[str, Any]) -> bool:
    """Whether something happens at blocks of certain numbers: they are replaced or patched, or a ControlNet adds to them.

    Nodes do such things for a part of the steps, so that nothing may be seen of it at the first skip.
    """
    options = kwargs.get("transformer_options") or {}
    return bool(kwargs.get("control") or options.get("patches") or options.get("patches_replace"))


class _Whole(nn.Module):
    """A whole model as one block, from nothing to its output.

    Noise or velocity stay as they are along a straight path, what the model was given does not. So what is kept of a whole
    model is what it returns: its difference from nothing, of the shape of the latent. (What models for inpainting and video are
    given has more channels.)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, sample: Tensor, call: Callable[[], Any]) -> Any:
        return call()

    def called(self, sample: Tensor, call: Callable[[], Any]) -> tuple[HostCall, tuple[Any, ...], dict[str, Any]]:
        """A call of this module in the place of ``call()``, which is given ``sample``."""
        nothing = sample.new_zeros(sample[:, : self.channels].shape)
        return HostCall(self), (nothing, call), {}


def _holders(module: nn.Module, stack: BlockStack) -> list[tuple[nn.Module, str, nn.Module]]:
    """Per block, which module below ``module`` holds it, and under which name."""
    held = {id(child): (holder, name, child) for holder in module.modules() for name, child in holder.named_children()}
    return [held[id(block)] for block in stack.blocks if id(block) in held]
