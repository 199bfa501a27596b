"""The entry point: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import magpolicy

if TYPE_CHECKING:
    from magpolicy_comfyui._handle import Handle


@magpolicy.hookimpl
def attach(target: Any, request: magpolicy.AttachRequest) -> Handle | None:
    """Attach to a ComfyUI ``ModelPatcher``; anything else is somebody else's."""
    if not _ours(target):
        return None
    from magpolicy_comfyui._handle import Handle

    return Handle(target, request)


@magpolicy.hookimpl
def preset_for(target: Any) -> str | None:
    """The preset of a ``ModelPatcher``, by the class and config of its model."""
    if not _ours(target):
        return None
    from magpolicy_comfyui._known import candidates

    return candidates(target.model)[-1].preset


def _ours(target: Any) -> bool:
    module = sys.modules.get("comfy.model_patcher")  # whoever made the object has imported it
    return module is not None and isinstance(target, module.ModelPatcher)
