"""The entry point: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import magpolicy

if TYPE_CHECKING:
    from magpolicy_vllm_omni._handle import Handle


@magpolicy.hookimpl(tryfirst=True)  # a pipeline of the engine is a torch module too
def attach(target: Any, request: magpolicy.AttachRequest) -> Handle | None:
    """Attach to a pipeline of vLLM-Omni; anything else is somebody else's."""
    if not _ours(target):
        return None
    from magpolicy_vllm_omni._handle import Handle

    return Handle.attach(target, request)


@magpolicy.hookimpl(tryfirst=True)
def preset_for(target: Any) -> list[magpolicy.Preset] | None:
    """The user's calibrations of a pipeline's model; ``None`` if there are none, or it is no pipeline of vLLM-Omni."""
    if not _ours(target):
        return None
    from magpolicy_vllm_omni._pipeline import kept_of

    return list(kept_of(target)) or None


def _ours(target: Any) -> bool:
    if sys.modules.get("vllm_omni") is None:  # whoever made the object has imported it
        return False
    kinds = type(target).__mro__
    return any(kind.__module__.startswith("vllm_omni.") and "Pipeline" in kind.__name__ for kind in kinds)
