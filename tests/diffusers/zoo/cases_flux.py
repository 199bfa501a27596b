"""Flux and its kin."""

import torch

from ._case import Case, Draw


def _flux(d: Draw) -> dict:
    tokens = d.size * d.size // 4
    return {
        "hidden_states": d.noise(tokens, 4),
        "encoder_hidden_states": d.text(5, 8),
        "pooled_projections": d.text(8),
        "timestep": d.time(1),
        "img_ids": torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4], dim=1),
        "txt_ids": torch.zeros(5, 3),
    }


CASES = [
    Case(
        cls="FluxTransformer2DModel",
        config=dict(
            in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
        ),
        inputs=_flux,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        result=1,
        extras={
            "controlnet": lambda d, m: {
                "controlnet_block_samples": [d.fixed(d.size * d.size // 4, 32) for _ in range(2)],
                "controlnet_single_block_samples": [d.fixed(d.size * d.size // 4, 32) for _ in range(2)],
            },
        },
        notes="Blocks return (text, image); single blocks concatenate them inside themselves.",
    ),
]  # fmt: skip
