"""The entry point: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import magpolicy

if TYPE_CHECKING:
    from magpolicy_diffusers._handle import Handle


@magpolicy.hookimpl(tryfirst=True)  # a diffusers model is a torch module too
def attach(target: Any, request: magpolicy.AttachRequest) -> Handle | None:
    """Attach to a diffusers pipeline (also a modular one) or model; anything else is somebody else's."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._handle import Handle

    return Handle.attach(target, request)


@magpolicy.hookimpl
def preset_for(target: Any) -> str | None:
    """The preset of a pipeline or model, by repo id, class and config."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._known import preset_of

    return preset_of(target)


def _ours(target: Any) -> bool:
    diffusers = sys.modules.get("diffusers")  # whoever made the object has imported it
    if diffusers is None:
        return False
    from magpolicy_diffusers._pipeline import pipeline_kinds
    from magpolicy_torch._front import unwrapped

    return isinstance(target, (diffusers.ModelMixin, *pipeline_kinds())) or isinstance(unwrapped(target), diffusers.ModelMixin)
