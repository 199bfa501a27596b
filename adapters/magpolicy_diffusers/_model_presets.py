"""Which preset belongs to a model: by its repo id, else by the classes of pipeline and transformer and the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

import magpolicy
from magpolicy import Preset, PresetError
from magpolicy.adapter import PresetMatches, fits, kept_for
from magpolicy_diffusers._pipeline import model_in, models_of
from magpolicy_diffusers._provenance import config_of, identity, repo_of, repos
from magpolicy_torch import adapter
from magpolicy_torch.adapter import own_name, unwrap
from torch import nn


@frozen
class KnownModel(adapter.KnownModel):
    """A published checkpoint as its class and config.json tell it, and the presets calibrated on it."""

    pipelines: tuple[str, ...] = ()
    """Classes of pipelines; none given: any, and a transformer by itself."""
    experts: int | None = None
    """Number of transformers; ``None``: any."""


_FLUX = {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}
_HUNYUAN = {"num_layers": 20, "num_single_layers": 40, "num_attention_heads": 24}
_WAN_14B = {"num_layers": 40, "num_attention_heads": 40}
_QWEN = {"num_layers": 60, "num_attention_heads": 24}

TABLE = (
    KnownModel("FluxTransformer2DModel", ("flux.1-kontext-dev",), _FLUX, ("FluxKontextPipeline", "FluxKontextInpaintPipeline")),
    KnownModel("FluxTransformer2DModel", ("flux.1-dev",), _FLUX),
    KnownModel("FluxTransformer2DModel", ("flux.1-schnell-4-doc-example",), _FLUX | {"guidance_embeds": False}),
    KnownModel(
        "Flux2Transformer2DModel", ("flux.2-vllm-omni",), {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48}
    ),
    KnownModel("ChromaTransformer2DModel", ("chroma",), {"in_channels": 64, "num_layers": 19, "num_single_layers": 38}),
    KnownModel("QwenImageTransformer2DModel", ("qwen-image",), _QWEN, ("QwenImagePipeline",)),
    KnownModel(
        "QwenImageTransformer2DModel", ("qwen-image-edit",), _QWEN, ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
    ),
    KnownModel(
        "HunyuanVideoTransformer3DModel", ("hunyuanvideo-t2v-720p",), _HUNYUAN | {"in_channels": 16}, ("HunyuanVideoPipeline",)
    ),
    KnownModel("HunyuanVideoFramepackTransformer3DModel", ("framepack", "framepack-f1"), _HUNYUAN),
    KnownModel("WanTransformer3DModel", ("wan2.1-t2v-1.3b",), {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}),
    KnownModel("WanTransformer3DModel", ("wan2.1-t2v-14b",), _WAN_14B | {"in_channels": 16}, experts=1),
    KnownModel("WanTransformer3DModel", ("wan2.2-t2v-a14b",), _WAN_14B | {"in_channels": 16}, experts=2),
    KnownModel(
        "WanTransformer3DModel", ("wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"), _WAN_14B | {"in_channels": 36}, experts=1
    ),
    KnownModel("WanTransformer3DModel", ("wan2.2-i2v-a14b",), _WAN_14B | {"in_channels": 36}, experts=2),
    KnownModel(
        "WanTransformer3DModel",
        ("wan2.2-ti2v-5b-i2v",),
        {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48},
        ("WanImageToVideoPipeline",),
    ),
    KnownModel(
        "WanTransformer3DModel", ("wan2.2-ti2v-5b-t2v",), {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48}
    ),
    KnownModel("WanVACETransformer3DModel", ("wan2.1-vace-1.3b",), {"num_layers": 30, "num_attention_heads": 12}),
    KnownModel("WanVACETransformer3DModel", ("wan2.1-vace-14b",), _WAN_14B),
)
# Families whose checkpoints share class and config: the repo id has to tell.
FAMILIES = {
    "Kandinsky5Transformer3DModel": "kandinsky5-",
    "HunyuanVideo15Transformer3DModel": "hunyuanvideo-1.5-",
    "HunyuanVideoTransformer3DModel": "hunyuanvideo-t2v-",
}


def presets_of(target: Any) -> list[Preset | str]:
    """The presets of a pipeline or model: the user's calibrations of it, the nearest first, then the published one.

    Raises:
        PresetError: none fits, or several published ones do; the message says what to pass.
        AdapterError: it is a model that does not denoise.
    """
    if (model := model_in(target)) is not None:
        adapter.check_denoises(model)
    kept = kept_of(target)
    try:
        return [*kept, preset_of(target)]
    except PresetError:
        if not kept:
            raise
        return list(kept)


def kept_of(target: Any) -> PresetMatches:
    """The user's calibrations of a pipeline or model: by its identity, and by an alias that is its repo id."""
    modules = models_of(target)
    aliased = [name for repo in repos(target, *modules) for name, calibrated in _by_repo(repo) if calibrated]
    if not isinstance(modules[0], nn.Module):  # a pipeline without a denoiser that is known
        return PresetMatches.of(aliased)
    pipe, classes = None if modules[0] is unwrap(target) else target, adapter.classes_of(*modules)
    found = PresetMatches.of([*kept_for(identity(pipe, modules)), *aliased])
    return PresetMatches(preset for preset in found if fits(preset, classes, host="diffusers"))


def preset_of(target: Any) -> str:
    """The name of the preset of a pipeline or model, calibrations aside.

    Raises:
        PresetError: none fits, or several do; the message says what to pass.
    """
    modules = models_of(target)
    for repo in repos(target, *modules):
        if found := [name for name, calibrated in _by_repo(repo) if not calibrated]:
            return found[0]
    kind, pipeline = own_name(modules[0]), own_name(target)
    rows = adapter.rows_of(TABLE, kind, config_of(modules[0]))
    row = next((r for r in rows if pipeline in (r.pipelines or (pipeline,)) and r.experts in (None, len(modules))), None)
    if row is not None and len(row.presets) == 1:
        return row.presets[0]
    what = f"target={pipeline}" + ("" if pipeline == kind else f" with {kind}")
    if row is not None:
        names = " or ".join(f"preset={name!r}" for name in row.presets)
        raise PresetError(f"{what} fits several presets, and nothing tells which; pass {names}")
    raise PresetError(
        f"{what} has no known preset; {adapter.near_misses(TABLE, kind, _family(kind))}plan: attach(..., speedup=2.0); or pass "
        "preset=... or ratios=..."
    )


def _family(kind: str) -> list[str]:
    prefix = FAMILIES.get(kind)
    return [] if prefix is None else [name for name in magpolicy.presets() if name.startswith(prefix)]


def _by_repo(repo: str) -> Iterator[tuple[str, bool]]:
    """By the whole id, or by the last part of a local path; and whether it is a calibration."""
    shown = repo_of(repo)[0].lower()
    for name, known in magpolicy.presets().items():
        aliases = [alias.lower() for alias in known.aliases if "/" in alias]
        if repo.lower() in aliases or shown in aliases or shown in (alias.rsplit("/", 1)[1] for alias in aliases):
            yield name, known.calibration is not None
