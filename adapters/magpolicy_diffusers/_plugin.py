"""The entry point: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import magpolicy

if TYPE_CHECKING:
    from magpolicy_diffusers._combined import CombinedHandle
    from magpolicy_diffusers._handle import Handle


@magpolicy.hookimpl(tryfirst=True)  # a diffusers model is a torch module too
def attach(target: Any, request: magpolicy.AttachRequest) -> Handle | CombinedHandle | None:
    """Attach to a diffusers pipeline (also a modular one, or all that a combined one calls) or model; anything else is somebody
    else's."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._combined import CombinedHandle
    from magpolicy_diffusers._handle import Handle
    from magpolicy_diffusers._pipeline import is_combined

    return CombinedHandle.attach(target, request) if is_combined(target) else Handle.attach(target, request)


@magpolicy.hookimpl
def attached(target: Any) -> list[Handle] | None:
    """The handles on a pipeline or model; on a model also those of its pipelines."""
    if not _ours(target) and not _ours_within(target):
        return None
    from magpolicy_diffusers._handle import Handle

    return Handle.on(target)


@magpolicy.hookimpl
def preset_for(target: Any) -> list[magpolicy.Preset | str] | None:
    """The presets of a pipeline or model, by repo id, class and config; the user's calibrations of it first."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._model_presets import presets_of

    return presets_of(target)


@magpolicy.hookimpl(tryfirst=True)
def compile(target: Any, request: magpolicy.CompileRequest) -> Any:
    """Compile a model, or each denoiser of a pipeline."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._compile import compile_model

    return compile_model(target, request)


def _ours_within(target: Any) -> bool:
    """Whether a module of no class of diffusers is that of a pipeline that is attached to."""
    if sys.modules.get("magpolicy_diffusers._handle") is None:
        return False
    from magpolicy_diffusers._handle import Handle

    return bool(Handle.on(target))


def _ours(target: Any) -> bool:
    if sys.modules.get("diffusers") is None:  # whoever made the object has imported it
        return False
    from magpolicy_diffusers._pipeline import is_ours

    return is_ours(target)
