"""What is known of the engine: its versions, the places to hook, and the models that ask before they run their blocks."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from magpolicy import AdapterError
from magpolicy.adapter import require

TESTED = ">=0.5.23,<0.5.24"
"""Versions of SGLang that the adapter was run with."""
_STAGE = "sglang.multimodal_gen.runtime.pipelines_core.stages.denoising.DenoisingStage"
_MIXIN = "sglang.multimodal_gen.runtime.cache.spectrum.SpectrumMixin"
LOOP, PREDICT = f"{_STAGE}._run_denoising_loop", f"{_STAGE}._predict_noise"
"""Methods of the denoising stage: the loop of one request, and one call of a model in it."""
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
