"""What a call of a model says of itself: its timestep, and whether it is there to fill a cache. Read off argument names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from magpolicy_torch.adapter import Times, tells_time, unwrap
from torch import Tensor, nn

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments:
    """Reads the arguments of a model's forward, however they are passed."""

    def __init__(self, module: nn.Module) -> None:
        inner = unwrap(module)
        parameters = inspect.signature(type(inner).forward.__get__(inner)).parameters.values()
        self._names = [parameter.name for parameter in parameters if parameter.kind not in _VARIABLE]

    @property
    def denoises(self) -> bool:
        """Whether the model says that it is given a timestep. A language model that makes pictures does not."""
        return any(map(tells_time, self._names))

    def times(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Times | None:
        """The highest and the lowest timestep in a call; waits for the device. ``None``: it is given none."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        for name in (*self._names, *kwargs):
            value = given.get(name) if tells_time(name) else None
            if isinstance(value, Tensor) and value.numel():
                highest, lowest = torch.stack(value.detach().aminmax()[::-1]).tolist()
                return highest, lowest
            if isinstance(value, (int, float)):
                return float(value), float(value)
        return None


def fills_cache(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is there to fill a cache of keys and values for later ones: it must compute, and is no step."""
    mode = getattr(kwargs.get("kv_cache"), "mode", None)
    return getattr(mode, "value", mode) == "write" or bool(kwargs.get("return_kv")) or bool(kwargs.get("update_cache"))
