"""A module by itself, without what was put around it."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrap(value: Any) -> Any:
    """``value``, or the module that ``torch.compile`` wrapped in it."""
    while isinstance(value, nn.Module) and isinstance(inner := getattr(value, "_orig_mod", None), nn.Module):
        value = inner
    return value
