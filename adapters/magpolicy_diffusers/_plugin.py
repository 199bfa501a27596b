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
def preset_for(target: Any) -> list[str] | None:
    """The presets of a pipeline or model, by repo id, class and config; a calibration of the user's first."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._model_presets import presets_of

    return presets_of(target)


@magpolicy.hookimpl(tryfirst=True)
def compile(target: Any, request: magpolicy.CompileRequest) -> Any:
    """Compile a model, or each denoiser of a pipeline."""
    if not _ours(target):
        return None
    from magpolicy_diffusers._block_stacks import find
    from magpolicy_diffusers._pipeline import denoisers_of
    from magpolicy_torch.evaluation._interceptor import unwrapped
    from magpolicy_torch.host._compile import compile_module

    for module in denoisers_of(target).values() or [unwrapped(target)]:
        compile_module(module, request, find)
    return target


def _ours(target: Any) -> bool:
    diffusers = sys.modules.get("diffusers")  # whoever made the object has imported it
    if diffusers is None:
        return False
    from magpolicy_diffusers._pipeline import pipeline_kinds
    from magpolicy_torch.evaluation._interceptor import unwrapped

    return isinstance(target, (diffusers.ModelMixin, *pipeline_kinds())) or isinstance(unwrapped(target), diffusers.ModelMixin)
