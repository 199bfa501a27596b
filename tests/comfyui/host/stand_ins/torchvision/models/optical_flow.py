"""A name to import."""

from __future__ import annotations

from typing import Any


def raft_large(*_: Any, **__: Any) -> Any:
    """Not what is tested here."""
    raise RuntimeError("the stand-in of torchvision has no optical flow")
