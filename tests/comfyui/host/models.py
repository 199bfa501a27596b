"""Every model class of ComfyUI, tiny: the real code with small figures and parameters drawn here."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

import torch
from host import figures, newer

TINY = figures.TINY | newer.TINY


def make(
    name: str,
    *,
    _dtypes: tuple[torch.dtype, torch.dtype | None] = (torch.float32, None),
    _operations: Any = None,
    **changes: Any,
) -> Any:
    """A ModelPatcher of the entry ``name``, on the CPU in float32; ``changes`` go to its figures.

    Args:
        name: of the entry.
        _dtypes: of its weights, and the one that they are cast to when they are used.
        _operations: its layers, in the place of those that ComfyUI picks.
    """
    import comfy.model_patcher
    import comfy.supported_models

    entry = next((m for m in comfy.supported_models.models if m.__name__ == name), None)
    if entry is None:
        pytest.skip(f"{name} is not in this ComfyUI")
    # Where the entry itself says how wide it is (in_channels, model_type), that holds; its large figures do not.
    own = {k: v for k, v in entry.unet_config.items() if k in _SAID}
    config = _known(entry, dict(TINY[name].config) | own | changes)
    torch.manual_seed(0)
    made = entry(config)
    small = {"num_heads", "num_head_channels", "num_classes", *entry.unet_extra_config}
    made.unet_config |= {k: v for k, v in TINY[name].config.items() if k in small}
    made.unet_config.pop("attn_precision", None) if not name.startswith("SD") else None
    made.set_inference_dtype(*_dtypes)
    made.custom_operations = _operations
    with torch.no_grad():
        model = made.get_model(_weights(name), "", **_place(name))
    if name == "MiniMaxMusic3":
        _cut(model.diffusion_model)
    draw(model.diffusion_model)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=device)


def quantized(name: str, form: str) -> Any:
    """As :func:`make`, with its linear layers quantized by ComfyUI's own layouts, as a checkpoint of them would be loaded."""
    import comfy.ops
    import comfy.quant_ops as quant

    layout = quant.QUANT_ALGOS[form]["comfy_tensor_layout"]
    operations = comfy.ops.mixed_precision_ops({}, torch.float32, disabled={form})
    patcher = make(name, _operations=operations)
    patcher.model.diffusion_model.load_state_dict(make(name).model.diffusion_model.state_dict())
    for layer in patcher.model.modules():
        if isinstance(layer, operations.Linear) and layer.in_features % 32 == 0 and layer.out_features % 32 == 0:
            packed = quant.QuantizedTensor.from_float(layer.weight.detach(), layout)
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
            layer.quant_format, layer.layout_type, layer._full_precision_mm = form, layout, True
    return patcher


_SAID = (
    "image_model",
    "audio_model",
    "model_type",
    "in_dim",
    "out_dim",
    "in_channels",
    "stable_cascade_stage",
    "vision_in_dim",
    "vec_in_dim",
    "patch_size",
)


_PARAMS = {
    "flux": ("comfy.ldm.flux.model", "FluxParams"),
    "flux2": ("comfy.ldm.flux.model", "FluxParams"),
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams"),
    "chroma": ("comfy.ldm.chroma.model", "ChromaParams"),
    "chroma_radiance": ("comfy.ldm.chroma_radiance.model", "ChromaRadianceParams"),
}


def _known(entry: Any, config: dict[str, Any]) -> dict[str, Any]:
    """``config`` less the figures that an older ComfyUI has no word for."""
    place = _PARAMS.get(str(entry.unet_config.get("image_model")))
    params = None if place is None else getattr(importlib.import_module(place[0]), place[1])
    if params is None:
        return config
    return {k: v for k, v in config.items() if k in params.__dataclass_fields__ or k == "image_model"}


def _place(name: str) -> dict[str, Any]:
    """Where it is made: nowhere yet, where its size is fixed in its code."""
    return {"device": torch.device("meta")} if name == "MiniMaxMusic3" else {}


def _cut(model: Any) -> None:
    """Three narrow layers in the place of MiniMaxMusic3's 36, whose figures stand in its code; on the CPU."""
    transformer = model.diffusion_transformer.transformer
    kind = type(transformer.layers[0])
    from comfy.ops import disable_weight_init

    transformer.layers = torch.nn.ModuleList(kind(2048, 64, 64, torch.float32, "cpu", disable_weight_init) for _ in range(3))
    model.to_empty(device="cpu")


def draw(module: torch.nn.Module, seed: int = 1) -> None:
    """Draw every parameter: models come with empty or zero ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            norm = parameter.ndim <= 1 and name.endswith(("weight", "scale"))
            scale = 0.5 / max(1, parameter[0].numel() if parameter.ndim > 1 else 16) ** 0.5
            parameter.copy_((1 + 0.1 * noise if norm else scale * noise).to(parameter.dtype))
        for name, buffer in module.named_buffers():
            # of a checkpoint; till then whatever was in memory
            if name.endswith(("pos_embed", "inv_freq", "y_embedding", "beta")):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))


def _weights(name: str) -> dict[str, torch.Tensor]:
    """Of a checkpoint, what the entry reads itself."""
    if name == "Stable_Zero123":
        return {"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)}
    if name in ("StableAudio", "StableAudio3"):
        from comfy.ldm.audio.embedders import NumberConditioner

        kind = {"fourier_features_type": "expo"} if name == "StableAudio3" else {}
        number = NumberConditioner(768, min_val=0, max_val=512, **kind)
        draw(number)
        parts = ("seconds_start", "seconds_total")
        return {f"conditioner.conditioners.{part}.{k}": v for part in parts for k, v in number.state_dict().items()}
    return {}


def latent(name: str, batch: int = 1, size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """An empty latent of the entry, as the nodes pass it on."""
    tiny = TINY[name]
    samples = torch.zeros(batch * tiny.frames, *(size or tiny.latent))
    if not tiny.second:
        return {"samples": samples}
    from comfy.nested_tensor import NestedTensor

    return {"samples": NestedTensor((samples, torch.zeros(batch, *tiny.second)))}


def conditioning(name: str, seed: int, tokens: int | None = None, **more: Any) -> list[Any]:
    """A prompt, as the nodes pass it on."""
    tiny = TINY[name]
    generator = torch.Generator().manual_seed(100 + seed)
    shape = (1, tokens or tiny.text[0], *tiny.text[1:])
    values: dict[str, Any] = {"pooled_output": torch.randn(1, tiny.pooled, generator=generator), **tiny.fixed}
    for key, size in tiny.extra.items():
        if key.startswith("attention_mask"):
            values[key] = torch.ones(1, *size, dtype=torch.long)
        elif key.endswith("_ids") or (key == "conditioning_lyrics" and len(size) == 1):
            values[key] = torch.randint(1, 15, (1, *size), generator=generator)
        else:
            values[key] = torch.randn(1, *size, generator=generator)
    return [[torch.randn(*shape, generator=generator), values | more]]
