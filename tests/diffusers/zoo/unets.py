"""The U-Nets of diffusers, and what else denoises without a stack: a skip leaves out the whole model."""

from __future__ import annotations

from typing import Any

import torch

from ._case import Case, Draw

COND_DOWN, COND_UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
SMALL: dict[str, Any] = {
    "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2, "cross_attention_dim": 8,
    "attention_head_dim": 4,
}  # fmt: skip
IMAGE: dict[str, Any] = SMALL | {"sample_size": 8, "down_block_types": COND_DOWN, "up_block_types": COND_UP}


def _image(draw: Draw, channels: int = 4) -> dict[str, Any]:
    text = draw.text(5, 8)
    return {"sample": draw.noise(channels, draw.size, draw.size), "timestep": draw.time(), "encoder_hidden_states": text}


def _video(draw: Draw, channels: int = 4) -> dict[str, Any]:
    return _image(draw) | {"sample": draw.noise(channels, 2, draw.size, draw.size)}


def _svd(draw: Draw) -> dict[str, Any]:
    return _image(draw) | {"sample": draw.noise(2, 8, draw.size, draw.size), "added_time_ids": torch.ones(draw.batch, 3)}


def _sdxl(draw: Draw) -> dict[str, Any]:
    added = {"text_embeds": draw.text(8), "time_ids": torch.ones(draw.batch, 6)}
    return _image(draw) | {"added_cond_kwargs": added}


UNETS = [
    Case(
        cls="UNet2DModel",
        config={
            "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2,
            "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        inputs=lambda d: {"sample": d.noise(3, d.size, d.size), "timestep": d.time()},
        conditioned=False,
    ),
    Case(cls="UNet2DConditionModel", config=IMAGE, inputs=_image),
    Case(
        cls="UNet1DModel",
        config={
            "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2,
            "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"), "up_block_types": ("UpResnetBlock1D",),
            "mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock", "time_embedding_type": "positional",
            "use_timestep_embedding": True, "flip_sin_to_cos": False, "act_fn": "mish",
        },
        inputs=lambda d: {"sample": d.noise(4, d.size), "timestep": d.time()},
        conditioned=False,
    ),
    Case(
        cls="UNet3DConditionModel",
        config=SMALL | {
            "sample_size": 8, "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
            "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
        },
        inputs=_video,
    ),
    Case(
        cls="UNetMotionModel",
        config={
            **{key: value for key, value in SMALL.items() if key != "attention_head_dim"}, "sample_size": 8,
            "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
            "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"), "motion_num_attention_heads": 2,
            "num_attention_heads": 2,
        },
        inputs=lambda d: _video(d) | {"encoder_hidden_states": d.text(5, 8).repeat_interleave(2, 0)},
        notes="The text comes once a frame.",
    ),
    Case(
        cls="UNetSpatioTemporalConditionModel",
        config={
            "sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 8,
            "num_attention_heads": (2, 2), "projection_class_embeddings_input_dim": 24, "addition_time_embed_dim": 8,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        inputs=_svd,
        notes="Takes the picture in 4 more channels than it returns.",
    ),
    Case(
        cls="I2VGenXLUNet",
        config={
            "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 2,
            "cross_attention_dim": 8, "attention_head_dim": 16, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        inputs=lambda d: _video(d) | {
            "fps": torch.full((d.batch,), 8), "image_latents": d.fixed(4, 2, d.size, d.size), "image_embeddings": d.fixed(8),
        },
    ),
    Case(
        cls="Kandinsky3UNet",
        config={
            "time_embedding_dim": 4, "groups": 2, "attention_head_dim": 4, "layers_per_block": 3,
            "block_out_channels": (32, 64), "cross_attention_dim": 8, "encoder_hid_dim": 8,
        },
        inputs=lambda d: _image(d) | {"encoder_attention_mask": torch.ones(d.batch, 5)},
    ),
    Case(
        cls="StableCascadeUNet",
        config={
            "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 8,
            "block_out_channels": (8, 8), "num_attention_heads": (0, 2), "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1), "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1),
            "block_types_per_layer": (
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            "clip_text_in_channels": 8, "clip_text_pooled_in_channels": 8, "clip_image_in_channels": 8, "clip_seq": 1,
            "kernel_size": 3, "self_attn": True, "timestep_conditioning_type": ("sca",), "switch_level": (False,),
        },
        inputs=lambda d: {
            "sample": d.noise(4, d.size, d.size), "timestep_ratio": d.time(1.0), "clip_text_pooled": d.text(1, 8),
            "clip_text": d.text(5, 8), "clip_img": d.fixed(1, 8),
        },
        notes="Its timestep has a name of its own, timestep_ratio: in a pipeline the scheduler tells the step.",
    ),
    Case(
        cls="AudioLDM2UNet2DConditionModel",
        config=IMAGE | {"cross_attention_dim": (8, 8), "class_embed_type": None},
        inputs=lambda d: _image(d) | {"encoder_hidden_states_1": d.text(5, 8)},
    ),
]  # fmt: skip
"""Not those that are parts: UNetControlNetXSModel is UNet2DConditionModel and its control branch in one."""
