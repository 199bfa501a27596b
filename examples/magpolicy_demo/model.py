"""The demo's model: a small FLUX-class transformer that draws handwritten digits.

Nothing here knows of magpolicy. It is what a user would bring: a diffusers class, its weights and a sampling loop.
Images are 28x28 grey values in [-1, 1], cut into 4x4 patches: 49 tokens of 16 channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

PIPELINE = Path(__file__).parent / "digits"
"""The folder of the whole pipeline, for diffusers."""
WEIGHTS = PIPELINE / "transformer"
GRID, PATCH, CHANNELS = 7, 4, 16
NO_CLASS = 10  # the label of the unconditional branch

Denoiser = Callable[[Tensor, float, Tensor], Tensor]


def build() -> FluxTransformer2DModel:
    """A fresh model with random weights, 1.9 million parameters: 2 double and 8 single blocks, 96 wide."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        num_layers=2,
        num_single_layers=8,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=CHANNELS,
        pooled_projection_dim=CHANNELS,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def load() -> FluxTransformer2DModel:
    """The trained model in float32 (stored in float16), ready for inference."""
    # low_cpu_mem_usage needs one package more, for a saving of 7 MB.
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_pretrained(WEIGHTS, low_cpu_mem_usage=False)
    return model.float().eval().requires_grad_(False)


def patchify(images: Tensor) -> Tensor:
    """``(B, 28, 28)`` images to ``(B, 49, 16)`` tokens."""
    cells = images.reshape(-1, GRID, PATCH, GRID, PATCH)
    return cells.permute(0, 1, 3, 2, 4).reshape(-1, GRID * GRID, CHANNELS)


def unpatchify(tokens: Tensor) -> Tensor:
    """``(B, 49, 16)`` tokens to ``(B, 28, 28)`` images."""
    cells = tokens.reshape(-1, GRID, GRID, PATCH, PATCH)
    return cells.permute(0, 1, 3, 2, 4).reshape(-1, GRID * PATCH, GRID * PATCH)


def velocity(model: Any, tokens: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """One evaluation of the denoiser.

    ``tokens`` is ``(B, 49, 16)``, ``sigma`` ``(B,)`` in [0, 1], ``labels`` ``(B,)`` digits or ``NO_CLASS``; returns the
    flow-matching velocity (noise minus image), shaped like ``tokens``.
    """
    one_hot = torch.nn.functional.one_hot(labels, CHANNELS).to(tokens)
    rows = torch.arange(GRID, device=tokens.device)
    ids = torch.stack([torch.zeros(GRID, GRID), *torch.meshgrid(rows, rows, indexing="ij")], dim=-1)
    output: Tensor = model(
        hidden_states=tokens,
        encoder_hidden_states=one_hot[:, None],
        pooled_projections=one_hot,
        timestep=sigma,
        img_ids=ids.reshape(-1, 3).to(tokens),
        txt_ids=torch.zeros(1, 3).to(tokens),
        return_dict=False,
    )[0]
    return output


def sigmas_for(steps: int, shift: float = 1.0) -> list[float]:
    """Noise levels of an Euler run, ``steps + 1`` of them from 1 down to 0; ``shift`` as in FLUX's scheduler."""
    levels = [1 - i / steps for i in range(steps + 1)]
    return [shift * s / (1 + (shift - 1) * s) for s in levels]


def euler(denoise: Denoiser, noise: Tensor, sigmas: list[float], labels: Tensor) -> Tensor:
    """Integrate the flow from noise to image; ``denoise(tokens, sigma, labels)`` is called once a step."""
    tokens = noise
    for sigma, following in itertools.pairwise(sigmas):
        tokens = tokens + (following - sigma) * denoise(tokens, sigma, labels)
    return tokens
