"""Which preset belongs to a model: by ComfyUI's class of it and the figures of its config, and by what a run shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from magpolicy_torch import adapter

if TYPE_CHECKING:
    from magpolicy.adapter import ScheduleSpan


@frozen
class KnownModel(adapter.KnownModel):
    """A published checkpoint as its class in comfy.model_base and ``model_config.unet_config`` tell it, and its preset."""

    reference: bool | None = None
    """Whether the prompt comes with a picture to edit; ``None``: either."""
    partial: bool | None = None
    """Whether a part of the schedule is run (one of two experts)."""
    large: bool | None = None
    """Whether the latent has at least the area of 720p."""

    @property
    def preset(self) -> str:
        """The preset calibrated on it."""
        return self.presets[0]


_FLUX = {"depth": 19, "depth_single_blocks": 38}
_HUNYUAN = {"depth": 20, "depth_single_blocks": 40, "in_channels": 16}
_WAN_14B = {"dim": 5120, "num_layers": 40}
_WAN_1B = {"dim": 1536, "num_layers": 30}
_WAN_5B = {"dim": 3072, "num_layers": 30}

TABLE = (
    KnownModel("Flux", ("flux.1-kontext-dev-comfyui",), _FLUX | {"guidance_embed": True}, reference=True),
    KnownModel("Flux", ("flux.1-dev",), _FLUX | {"guidance_embed": True}),
    KnownModel("Flux", ("flux.1-schnell-4-doc-example",), _FLUX | {"guidance_embed": False}),
    KnownModel("Flux2", ("flux.2-vllm-omni",), {"depth": 8, "depth_single_blocks": 48}),
    KnownModel("Chroma", ("chroma",), _FLUX),
    KnownModel("QwenImage", ("qwen-image-edit",), {"num_layers": 60}, reference=True),
    KnownModel("QwenImage", ("qwen-image-comfyui",), {"num_layers": 60}),
    KnownModel("Omnigen2", ("omnigen2-edit",), {"hidden_size": 2520}, reference=True),
    KnownModel("Omnigen2", ("omnigen2-t2i",), {"hidden_size": 2520}),
    KnownModel("HunyuanVideo", ("hunyuanvideo-t2v-720p",), _HUNYUAN),
    KnownModel("HunyuanVideo15", ("hunyuanvideo-1.5-t2v-20",)),
    KnownModel("WAN21_Vace", ("wan2.1-vace-1.3b",), _WAN_1B),
    KnownModel("WAN21_Vace", ("wan2.1-vace-14b",), _WAN_14B),
    KnownModel("WAN21", ("wan2.1-t2v-1.3b",), _WAN_1B | {"in_dim": 16}),
    KnownModel("WAN21", ("wan2.2-t2v-a14b",), _WAN_14B | {"in_dim": 16}, partial=True),
    KnownModel("WAN21", ("wan2.1-t2v-14b",), _WAN_14B | {"in_dim": 16}),
    KnownModel("WAN21", ("wan2.1-i2v-14b-720p",), _WAN_14B | {"in_dim": 36, "model_type": "i2v"}, large=True),
    KnownModel("WAN21", ("wan2.1-i2v-14b-480p",), _WAN_14B | {"in_dim": 36, "model_type": "i2v"}),
    # Without the picture's own embedding, which Wan2.2 left out.
    KnownModel("WAN21", ("wan2.2-i2v-a14b",), _WAN_14B | {"in_dim": 36}),
    KnownModel("WAN22", ("wan2.2-ti2v-5b-i2v",), _WAN_5B, reference=True),
    KnownModel("WAN22", ("wan2.2-ti2v-5b-t2v",), _WAN_5B),
)
_720P = 1280 // 8 * (720 // 8)
_REFERENCES = frozenset({"ref_latents", "denoise_mask"})


def rows_for(model: Any) -> list[KnownModel]:
    """The rows that fit a ``BaseModel``; empty for a model that no preset was calibrated on."""
    return adapter.rows_of(TABLE, type(model).__name__, model.model_config.unet_config)


def unknown(kind: str = "") -> str:
    """What to say where the rule was to decide and no preset was calibrated on a model of that class: it needs a table."""
    which = f" ({kind})" if kind else ""
    return (
        f"model_type=auto: no preset was calibrated on this model{which}, and a threshold needs one; so the run is planned for "
        f"twice the speed, as by Speed up (magpolicy). For a threshold: {adapter.near_misses(TABLE, kind)}pick a preset, "
        "or calibrate with the MagCache Calibration node"
    )


def for_run(
    model: Any, conditions: Mapping[str, Iterable[Mapping[str, Any]] | None], span: ScheduleSpan, shape: Sequence[int]
) -> str | None:
    """The preset of one run of a ``BaseModel``; ``None`` for a model that no preset was calibrated on."""
    found = rows_for(model)
    if not found:
        return None
    parts = {name for conds in conditions.values() for cond in conds or () for name in cond.get("model_conds", {})}
    shown = {
        "reference": bool(_REFERENCES & parts),
        "partial": span.partial,
        "large": shape[-1] * shape[-2] >= _720P,
    }
    fits = (k for k in found if all(getattr(k, name) in (None, value) for name, value in shown.items()))
    chosen = next(fits, found[-1]).preset
    return longer(chosen, span.steps)


def longer(preset: str, steps: int) -> str:
    """HunyuanVideo 1.5 has tables for 20 and 40 steps; which one a run of ``steps`` goes by."""
    return "hunyuanvideo-1.5-t2v-40" if preset == "hunyuanvideo-1.5-t2v-20" and steps > 20 else preset
