"""A module by itself, without torch.compile, data parallelism or PEFT around it, and the class that it was written as."""

from __future__ import annotations

import sys
from typing import Any

from magpolicy import AdapterError
from torch import nn

_DERIVED = ("FSDP", "Replicate", "DDP", "Parametrized")
"""What torch puts before the name of a class that it derives from a module's."""


def unwrap(value: Any, *, peft: bool = False) -> Any:
    """The module inside the wrappers of ``torch.compile`` and data parallelism around ``value``; ``value`` itself without any.

    Args:
        peft: go on to the model in a ``PeftModel``. That calls its forward alone, so it is the model, but not what is called.

    Raises:
        AdapterError: a ``DataParallel`` over several devices, which makes copies of the model at each call.
    """
    while (inner := _inner(value, peft)) is not None:
        value = inner
    return value


def own_class(module: Any) -> type:
    """The class that a module was written as; of anything else its class.

    ``fully_shard``, ``replicate`` and parametrizations put a class of their own in its place, derived from it: sharded or not,
    a model and its blocks are to be known by one name.
    """
    kind: type = type(module)
    while kind.__module__.startswith("torch.") and kind.__name__ in {f"{p}{kind.__bases__[-1].__name__}" for p in _DERIVED}:
        kind = kind.__bases__[-1]
    return kind


def own_name(module: Any) -> str:
    """The name of that class."""
    return own_class(module).__name__


def _inner(value: Any, peft: bool) -> Any:
    if not isinstance(value, nn.Module):
        return None
    kind = getattr(sys.modules.get("peft"), "PeftModel", None)  # whoever wraps a model in it has imported it
    if kind is not None and isinstance(value, kind):
        return value.get_base_model() if peft else None
    if isinstance(value, nn.parallel.DistributedDataParallel):
        return value.module
    if isinstance(value, nn.DataParallel):
        if len(value.device_ids) > 1:
            raise AdapterError(
                f"target holds a DataParallel over {len(value.device_ids)} devices, which runs copies of "
                f"{own_name(value.module)} that know of no step before; use one process a device, with "
                "DistributedDataParallel or the module itself"
            )
        return value.module
    inner = getattr(value, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None
