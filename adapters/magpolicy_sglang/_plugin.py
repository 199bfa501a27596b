"""The entry point of the core: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from weakref import ref

import magpolicy

if TYPE_CHECKING:
    from magpolicy_sglang._handle import StageHandle

_STAGES = "sglang.multimodal_gen.runtime.pipelines_core.stages.denoising"


@magpolicy.hookimpl
def attach(target: Any, request: magpolicy.AttachRequest) -> StageHandle | None:
    """Attach to a denoising stage of SGLang; anything else is somebody else's."""
    if not _ours(target):
        return None
    from magpolicy_sglang._handle import ATTACHED, StageHandle

    handle = StageHandle(target, request)
    stage = ref(target)
    handle.install(
        (lambda: ATTACHED.__setitem__(target, handle), lambda: _forget(stage(), handle)), replaces=ATTACHED.get(target)
    )
    return handle


@magpolicy.hookimpl
def attached(target: Any) -> list[StageHandle] | None:
    """The handle on a denoising stage of SGLang."""
    if not _ours(target):
        return None
    from magpolicy_sglang._handle import ATTACHED

    handle = ATTACHED.get(target)
    return [] if handle is None else [handle]


@magpolicy.hookimpl
def preset_for(target: Any) -> magpolicy.Preset | None:
    """The preset of the repo id that the server was started with."""
    if not _ours(target):
        return None
    try:
        return magpolicy.preset(str(target.server_args.model_path))
    except magpolicy.PresetError:
        return None


def _ours(target: Any) -> bool:
    stages = sys.modules.get(_STAGES)  # whoever made the object has imported it
    return stages is not None and isinstance(target, stages.DenoisingStage)


def _forget(target: Any, handle: Any) -> None:
    from magpolicy_sglang._handle import ATTACHED

    if target is not None and ATTACHED.get(target) is handle:
        del ATTACHED[target]
