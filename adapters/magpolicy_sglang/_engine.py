"""What is known of the engine: its versions, the places to hook, and the models that ask before they run their blocks."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from magpolicy import AdapterError
from magpolicy.adapter import require
from torch import distributed

TESTED = ">=0.5.23,<0.5.24"
"""Versions of SGLang that the adapter was run with."""
_STAGES = "sglang.multimodal_gen.runtime.pipelines_core.stages"
_MIXIN = "sglang.multimodal_gen.runtime.cache.spectrum.SpectrumMixin"
STAGE = f"{_STAGES}.base.PipelineStage.__call__"
"""A call of any stage of a pipeline."""
MADE = f"{_STAGES}.denoising.DenoisingStage.__init__"
"""Where a worker makes the stage that denoises, before it is called ready."""
LOOP, PREDICT = (f"{_STAGES}.denoising.DenoisingStage.{name}" for name in ("_run_denoising_loop", "_predict_noise"))
"""Methods of that stage: the loop of one request, and one call of a model in it."""
BEGIN, RECORD = f"{_MIXIN}.begin_spectrum_step", f"{_MIXIN}.spectrum_record_features"
"""Methods of a model, which its forward calls before its blocks (do they run?) and after them (with what came out)."""
FORECAST = f"{_MIXIN}.spectrum_predict_features"
"""The method that its forward calls in place of its blocks, with what would go in."""
WITH_SEAM = frozenset(
    {
        "FluxTransformer2DModel",
        "HunyuanVideoTransformer3DModel",
        "SD3Transformer2DModel",
        "WanTransformer3DModel",
    }
)
"""Models whose forward calls these three, with the hidden states that enter and leave the blocks."""


def check_version() -> None:
    """Raise AdapterError unless the SGLang that is installed is one that the adapter was run with."""
    specifiers = require("packaging.specifiers", "sglang")
    installed = version("sglang")
    if not specifiers.SpecifierSet(TESTED).contains(installed, prereleases=True):
        raise AdapterError(
            f"sglang {installed} is not known to this version of magpolicy, which was run with {TESTED}; install one of those, "
            "or a later magpolicy. Nothing was patched"
        )


def asks(model: Any) -> bool:
    """Whether the forward of ``model`` asks before it runs its blocks; a class derived from such a one may not."""
    owner, _, method = getattr(type(model).forward, "__qualname__", "").rpartition(".")
    return method == "forward" and owner in WITH_SEAM


def denoises(stage: Any) -> bool:
    """Whether ``stage`` is one that denoises, in whatever loop, or calls a pipeline of diffusers that does."""
    return getattr(stage, "role_affinity", None) == "denoiser" or hasattr(stage, "diffusers_pipe")


def ranks_of_a_request() -> Any:
    """The process group of the workers that share a request, on the CPU; ``None`` if one works by itself."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return None
    from sglang.multimodal_gen.runtime.distributed import parallel_state

    group = parallel_state.get_replica_group()
    return group.cpu_group if group.world_size > 1 else None
