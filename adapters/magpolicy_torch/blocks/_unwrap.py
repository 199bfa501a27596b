"""What a model is wrapped in: torch.compile, data parallelism, PEFT."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def unwrap(value: Any) -> Any:
    """The model in ``value``, whatever wraps it; ``value`` itself if nothing does."""
    while (inner := _inner(value)) is not None:
        value = inner
    return value


def called(value: Any) -> Any:
    """The module that is called when ``value`` is.

    torch.compile and data parallelism call the module that they wrap, PEFT calls the forward alone.
    """
    while (inner := None if _peft(value) else _inner(value)) is not None:
        value = inner
    return value


def _inner(value: Any) -> Any:
    if isinstance(value, nn.parallel.DistributedDataParallel):
        return value.module
    if _peft(value):
        return value.get_base_model()
    return getattr(value, "_orig_mod", None) if isinstance(value, nn.Module) else None


def _peft(value: Any) -> bool:
    kind = getattr(sys.modules.get("peft"), "PeftModel", None)  # whoever wraps a model in it has imported it
    return kind is not None and isinstance(value, kind)
