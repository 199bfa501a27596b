"""What a call of a denoiser says of itself: its timestep, and what it is conditioned on.

Argument names are read off the model's own forward; nothing here knows a model.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from magpolicy_torch.adapter import Times, tells_time
from torch import Tensor

# Arguments in which the branches of guidance differ: text, class, pooled embeddings, and switches such as skip_layers. Not the
# latents, nor what is computed anew at each step (ControlNet residuals).
_CONDITION = re.compile(
    r"(^|_)(encoder|text|txt|prompt|cap|pooled|class|label|labels|input_ids|conditioning|cond|llama3|t5|prior|skip_layers"
    r"|perturb\w*|isolate\w*|negative|uncondtion|spatio_temporal\w*)(_|$)"
)


class Arguments:
    """Reads the arguments of a forward, however they are passed."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        parameters = inspect.signature(forward).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self._names = [p.name for p in parameters if p.kind not in variable]
        self._time = next((n for n in self._names if tells_time(n)), None)
        self.caches = any(name.startswith("kv_cache") for name in self._names)
        """Whether the model has a key-value cache that calls may fill."""
        self.tell = [(i, n) for i, n in enumerate(self._names) if n != self._time and _CONDITION.search(n)]
        """The arguments that tell streams apart, each with its place among all."""

    def timestep(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Times | None:
        """The timestep as the model is given it; waits for the device."""
        value = None if self._time is None else kwargs.get(self._time)
        if value is None and self._time is not None:
            value = self._given(args, kwargs).get(self._time)
        if isinstance(value, Tensor) and value.numel():
            if value.numel() == 1:
                return (float(value),) * 2
            return tuple(torch.stack(value.detach().aminmax()[::-1]).tolist())
        return (float(value),) * 2 if isinstance(value, (int, float)) else None

    def condition(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of them that are given."""
        given = self._given(args, kwargs)
        return {name: given[name] for _, name in self.tell if given.get(name) is not None}

    def fills_cache(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the call is there to fill a key-value cache for later ones: it must compute, and is no step.

        diffusers says so by ``kv_cache_mode="extract"`` or ``"capture…"``, ``kv_caches.mode == "write"`` (GLM-Image), or
        ``kv_cache_flag["is_cache_step"]`` (AnyFlow FAR).
        """
        given = {n: v for n, v in self._given(args, kwargs).items() if n.startswith("kv_cache")}
        mode, flag = str(given.get("kv_cache_mode")), given.get("kv_cache_flag")
        writes = getattr(given.get("kv_caches"), "mode", None) == "write"
        flagged = isinstance(flag, Mapping) and bool(flag.get("is_cache_step"))
        return writes or flagged or "extract" in mode or "capture" in mode

    def latents(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What is denoised: the first argument."""
        return self._given(args, kwargs).get(self._names[0]) if self._names else None

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs


class Fingerprints:
    """Equal for equal contents. A tensor seen before is not read again, so a loop that passes on its prompts costs nothing."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[Tensor], int, Hashable]] = {}

    def of(self, value: Any, row: int | None = None, rows: int = 1) -> Hashable:
        """The fingerprint of ``value``; of one of its ``rows`` samples, if ``row`` says which and it holds that many."""
        if isinstance(value, Tensor):
            dim = None if row is None else batch_dim(value, rows)
            return self._tensor(value, None if dim is None else row, dim or 0)
        if isinstance(value, Mapping):
            return tuple((key, self.of(item, row, rows)) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            if row is not None and len(value) == rows and all(isinstance(item, Tensor) for item in value):
                return self.of(value[row])
            return tuple(self.of(item, row, rows) for item in value)
        return value if isinstance(value, (bool, int, float, str)) else type(value).__name__

    def _tensor(self, tensor: Tensor, row: int | None, dim: int) -> Hashable:
        version = 0 if tensor.is_inference() else tensor._version
        key = id(tensor), -1 if row is None else row
        found = self._known.get(key)
        if found is not None and found[0]() is tensor and found[1] == version:
            return found[2]
        contents = _digest(tensor if row is None else tensor.select(dim, row))
        self._known[key] = weakref.ref(tensor), version, contents
        return contents


def batch_dim(value: Tensor, rows: int) -> int | None:
    """Along which dimension a tensor holds one part for each of ``rows`` samples: the first, or the second after one of layers
    (HiDream's text); ``None`` if it holds none."""
    if value.ndim and value.shape[0] == rows:
        return 0
    return 1 if value.ndim > 2 and value.shape[1] == rows else None


@torch.no_grad()
def _digest(tensor: Tensor) -> Hashable:
    flat = tensor.detach().flatten()
    if not flat.numel():
        return tuple(tensor.shape)
    flat = flat.to(torch.float32)
    places = torch.arange(flat.numel(), device=flat.device, dtype=torch.float32)
    sums = torch.stack([flat.sum(), flat.square().sum(), (flat * torch.cos(places)).sum(), flat[0], flat[-1]])
    return tuple(tensor.shape), tuple(sums.tolist())
