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
def preset_for(target: Any) -> list[magpolicy.Preset | str] | None:
    """The presets of a ``ModelPatcher``: the user's calibrations of its model, then the one of its class and config."""
    if not _ours(target):
        return None
    from magpolicy_comfyui._identity import kept_of
    from magpolicy_comfyui._model_presets import candidates

    kept = kept_of(target.model)
    try:
        return [*kept, candidates(target.model)[-1].preset]
    except magpolicy.PresetError:
        if not kept:
            raise
        return list(kept)


@magpolicy.hookimpl
def compile(target: Any, request: magpolicy.CompileRequest) -> Any:
    """Compile a ``ModelPatcher`` by ComfyUI's own wrapper, when it is sampled."""
    if not _ours(target):
        return None
    from magpolicy_comfyui._compile import compile_model
    from magpolicy_torch.adapter import check_options

    check_options(request.options)
    return compile_model(target, region=request.region, **request.options)


def _ours(target: Any) -> bool:
    module = sys.modules.get("comfy.model_patcher")  # whoever made the object has imported it
    return module is not None and isinstance(target, module.ModelPatcher)
