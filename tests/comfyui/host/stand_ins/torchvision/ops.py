"""Names to import: operations of models that segment, which are not what is tested here."""

from __future__ import annotations

from typing import Any


def roi_align(*_: Any, **__: Any) -> Any:
    """Not what is tested here."""
    raise RuntimeError("the stand-in of torchvision has no roi_align")


def deform_conv2d(*_: Any, **__: Any) -> Any:
    """Not what is tested here."""
    raise RuntimeError("the stand-in of torchvision has no deform_conv2d")


def box_iou(*_: Any) -> Any:
    """Not what is tested here."""
    raise RuntimeError("the stand-in of torchvision has no box_iou")
