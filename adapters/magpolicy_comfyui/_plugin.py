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
    if not _denoises(target):
        return None
    from magpolicy_comfyui._handle import Handle

    return Handle.attach(target, request)


@magpolicy.hookimpl
def attached(target: Any) -> list[Handle] | None:
    """The handle on a ``ModelPatcher``, also for what a node has put on it."""
    if not _ours(target):
        return None
    from magpolicy_comfyui._handle import Handle

    handle = Handle.on(target)
    return [] if handle is None else [handle]


@magpolicy.hookimpl
def preset_for(target: Any) -> list[magpolicy.Preset | str] | None:
    """The user's calibrations of the model in a ``ModelPatcher``, and the preset that was published for it, if any."""
    if not _denoises(target):
        return None
    from magpolicy_comfyui._identity import identity_of, kept_of
    from magpolicy_comfyui._model_presets import rows_for

    published = [row.preset for row in rows_for(target.model)[-1:]]
    return [*kept_of(identity_of(target)), *published] or None


@magpolicy.hookimpl
def compile(target: Any, request: magpolicy.CompileRequest) -> Any:
    """Compile a ``ModelPatcher`` by ComfyUI's own wrapper, when it is sampled."""
    if not _denoises(target):
        return None
    from magpolicy_comfyui._compile import compile_model
    from magpolicy_torch.adapter import check_options

    check_options(request.options)
    return compile_model(target, region=request.region, **request.options)


def _ours(target: Any) -> bool:
    module = sys.modules.get("comfy.model_patcher")  # whoever made the object has imported it
    return module is not None and isinstance(target, module.ModelPatcher)


def _denoises(target: Any) -> bool:
    """Whether it is ours to drive; a patcher of a text encoder, or of anything else without a diffusion model, is refused."""
    if _ours(target) and not hasattr(target.model, "diffusion_model"):
        raise magpolicy.AdapterError(
            f"target={type(target).__name__} of {type(target.model).__name__} is no denoiser: it has no diffusion_model; "
            "attach to the patcher that is the MODEL of a workflow"
        )
    return _ours(target)
