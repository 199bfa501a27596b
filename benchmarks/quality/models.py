"""The lab's models: three diffusers classes, small enough to train on a processor, each with its own way of being called.

A `LabModel` hides what differs: how to build it, how to call it, which labels it takes, how latents become pictures.
Latents are pictures in [-1, 1]; there is no autoencoder in between. Sigma runs from 1 (noise) to 0, the network predicts
noise minus data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from benchmarks.quality import data
from safetensors.torch import load_file

import torch
from diffusers import SD3Transformer2DModel, WanTransformer3DModel
from magpolicy_demo import model as demo
from torch import Tensor

NONE = 10  # the label of the unconditional branch
WIDTH = 24  # of a one-hot label


@frozen
class LabModel:
    """One model of the lab.

    ``velocity(network, latents, sigma, labels)`` takes latents ``shape(B)``, sigma ``(B,)``, labels ``(B, parts)``.
    """

    name: str
    title: str
    build: Callable[[], Any]
    velocity: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    label_parts: int
    steps: int
    guidance: float
    shift: float
    to_frames: Callable[[Tensor], Tensor]  # latents -> (B * frames, height, width) in [0, 1]

    @property
    def weights(self) -> Path:
        return demo.WEIGHTS if self.name == "digits" else data.CACHE / "weights" / self.name

    def load(self) -> Any:
        """The trained network in float32."""
        if not self.weights.exists():
            raise FileNotFoundError(f"no weights in {self.weights}; run: python -m benchmarks.quality.train_{self.name}")
        network = self.build()
        network.load_state_dict(load_file(self.weights / "diffusion_pytorch_model.safetensors"))
        return network.float().eval().requires_grad_(False)

    def noise(self, seed: int, count: int) -> Tensor:
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def labels(self, count: int, start: int = 0) -> Tensor:
        """``count`` prompts, walking through the classes."""
        base = torch.arange(start, start + count)
        return torch.stack(
            [(base * (1 + 2 * part)) % (10 if part == 0 else data.DIRECTIONS) for part in range(self.label_parts)], 1
        )


def words(labels: Tensor) -> Tensor:
    """One-hot tokens ``(B, parts, WIDTH)``; each part has its own range, for tokens carry no position."""
    return torch.nn.functional.one_hot(labels + (NONE + 1) * torch.arange(labels.shape[1]), WIDTH).float()


def unit(latents: Tensor) -> Tensor:
    return latents.clamp(-1, 1) / 2 + 0.5


def digits_velocity(network: Any, latents: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    return demo.velocity(network, latents, sigma, labels[:, 0])


def build_video() -> WanTransformer3DModel:
    """8 blocks, 96 wide; patches of 4 by 4 pixels of one frame."""
    return WanTransformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=288,
        num_layers=8,
        rope_max_seq_len=64,
    )


def video_velocity(network: Any, latents: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    out: Tensor = network(hidden_states=latents, timestep=sigma * 1000, encoder_hidden_states=words(labels), return_dict=False)[
        0
    ]
    return out


def build_clothes() -> SD3Transformer2DModel:
    """10 joint blocks, 96 wide; patches of 4 by 4 pixels."""
    return SD3Transformer2DModel(
        sample_size=28,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=10,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
    )


def clothes_velocity(network: Any, latents: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    text = words(labels)
    out: Tensor = network(
        hidden_states=latents,
        encoder_hidden_states=text,
        pooled_projections=text[:, 0],
        timestep=sigma * 1000,
        return_dict=False,
    )[0]
    return out


MODELS = {
    model.name: model
    for model in (
        LabModel(
            name="digits",
            title="image, Flux class, MNIST",
            build=demo.build,
            velocity=digits_velocity,
            shape=(demo.GRID**2, demo.CHANNELS),
            label_parts=1,
            steps=28,
            guidance=2.0,
            shift=1.0,
            to_frames=lambda latents: unit(demo.unpatchify(latents)),
        ),
        LabModel(
            name="video",
            title="video, Wan class, moving MNIST",
            build=build_video,
            velocity=video_velocity,
            shape=(1, data.VIDEO_FRAMES, data.VIDEO_SIZE, data.VIDEO_SIZE),
            label_parts=2,
            steps=30,
            guidance=2.0,
            shift=3.0,
            to_frames=lambda latents: unit(latents).flatten(0, 2),
        ),
        LabModel(
            name="clothes",
            title="image, SD3 class, Fashion-MNIST",
            build=build_clothes,
            velocity=clothes_velocity,
            shape=(1, 28, 28),
            label_parts=1,
            steps=28,
            guidance=2.0,
            shift=1.0,
            to_frames=lambda latents: unit(latents).flatten(0, 1),
        ),
    )
}
