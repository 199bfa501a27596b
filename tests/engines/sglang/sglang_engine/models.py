"""Tiny models of the engine with random weights, and what a request for each has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from sglang.multimodal_gen.configs.models.dits.flux import FluxArchConfig, FluxConfig
from sglang.multimodal_gen.configs.models.dits.hunyuanvideo import HunyuanVideoArchConfig, HunyuanVideoConfig
from sglang.multimodal_gen.configs.models.dits.stablediffusion3 import (
    StableDiffusion3TransformerArchConfig,
    StableDiffusion3TransformerConfig,
)
from sglang.multimodal_gen.configs.models.dits.wanvideo import WanVideoArchConfig, WanVideoConfig
from sglang.multimodal_gen.configs.pipeline_configs.flux import FluxPipelineConfig
from sglang.multimodal_gen.configs.pipeline_configs.hunyuan import HunyuanConfig
from sglang.multimodal_gen.configs.pipeline_configs.stablediffusion3 import StableDiffusion3PipelineConfig
from sglang.multimodal_gen.configs.pipeline_configs.wan import Wan2_2_T2V_A14B_Config, WanT2V480PConfig
from sglang.multimodal_gen.runtime.models.dits.flux import FluxTransformer2DModel
from sglang.multimodal_gen.runtime.models.dits.hunyuanvideo import HunyuanVideoTransformer3DModel
from sglang.multimodal_gen.runtime.models.dits.stablediffusion3 import SD3Transformer2DModel
from sglang.multimodal_gen.runtime.models.dits.wanvideo import WanTransformer3DModel
from sglang.multimodal_gen.runtime.models.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from sglang.multimodal_gen.runtime.models.schedulers.scheduling_flow_unipc_multistep import FlowUniPCMultistepScheduler

import torch

Random = Callable[..., torch.Tensor]


@frozen
class Kind:
    """A model that the engine serves."""

    config: Any
    """The engine's pipeline config, with the config of a tiny model in it."""
    model: type[torch.nn.Module]
    scheduler: Callable[[], Any]
    latents: Callable[[int], tuple[int, ...]]
    """The shape of what is denoised, by the size that a request asks for."""
    given: Callable[[Random], dict[str, Any]]
    """What a request has beside: embeddings of its prompts, by a source of random tensors."""
    guidance: float
    """The scale at which the engine evaluates guidance in two calls."""
    experts: int = 1


def wan() -> Kind:
    return Kind(
        WanT2V480PConfig(dit_config=_wan_config()), WanTransformer3DModel, lambda: FlowUniPCMultistepScheduler(shift=3.0),
        lambda size: (1, 4, 2, size, size), _two_prompts, 4.0,
    )  # fmt: skip


def wan22() -> Kind:
    """Two experts: one for high noise and one for low."""
    return Kind(
        Wan2_2_T2V_A14B_Config(dit_config=_wan_config()), WanTransformer3DModel, lambda: FlowUniPCMultistepScheduler(shift=3.0),
        lambda size: (1, 4, 2, size, size), _two_prompts, 4.0, experts=2,
    )  # fmt: skip


def _wan_config() -> Any:
    return WanVideoConfig(
        arch_config=WanVideoArchConfig(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=64,
            num_layers=3,
        )
    )


def _two_prompts(random: Random) -> dict[str, Any]:
    return {"prompt_embeds": [random(1, 5, 16)], "negative_prompt_embeds": [random(1, 5, 16)]}


def flux() -> Kind:
    arch = FluxArchConfig(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    config = FluxPipelineConfig(dit_config=FluxConfig(arch_config=arch))
    config.vae_config.arch_config.vae_scale_factor = 8  # the engine reads it off the VAE that it loads; here is none
    return Kind(
        config, FluxTransformer2DModel,
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), lambda size: (1, size * size, 16),
        lambda random: {
            "prompt_embeds": [random(1, 16), random(1, 5, 16)], "negative_prompt_embeds": [random(1, 16), random(1, 5, 16)],
            "pooled_embeds": [random(1, 16)], "neg_pooled_embeds": [random(1, 16)],
            "prompt_seq_lens": [[1], [5]], "negative_prompt_seq_lens": [[1], [5]],
        },
        3.0,
    )  # fmt: skip


def hunyuan() -> Kind:
    arch = HunyuanVideoArchConfig(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=32, num_layers=2, num_single_layers=2,
        num_refiner_layers=1, rope_axes_dim=(8, 12, 12), text_embed_dim=16, pooled_projection_dim=16,
    )  # fmt: skip
    return Kind(
        HunyuanConfig(dit_config=HunyuanVideoConfig(arch_config=arch)), HunyuanVideoTransformer3DModel,
        lambda: FlowMatchEulerDiscreteScheduler(shift=7.0), lambda size: (1, 4, 2, size, size),
        lambda random: {
            **_two_prompts(random), "pooled_embeds": [random(1, 16)], "neg_pooled_embeds": [random(1, 16)],
            "prompt_attention_mask": [torch.ones(1, 5)], "negative_attention_mask": [torch.ones(1, 5)],
        },
        4.0,
    )  # fmt: skip


def sd3() -> Kind:
    arch = StableDiffusion3TransformerArchConfig(
        sample_size=16, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=32, num_attention_heads=2,
        cross_attention_dim=16, joint_attention_dim=16, caption_projection_dim=64, pooled_projection_dim=16,
        pos_embed_max_size=16,
    )  # fmt: skip
    config = StableDiffusion3TransformerConfig(arch_config=arch)
    return Kind(
        StableDiffusion3PipelineConfig(dit_config=config), SD3Transformer2DModel,
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), lambda size: (1, 4, size, size),
        lambda random: {
            **_two_prompts(random), "pooled_embeds": [random(1, 16)], "neg_pooled_embeds": [random(1, 16)],
        },
        7.0,
    )  # fmt: skip


KINDS: dict[str, Callable[[], Kind]] = {"wan": wan, "wan22": wan22, "flux": flux, "hunyuan": hunyuan, "sd3": sd3}
