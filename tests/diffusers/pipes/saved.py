"""Tiny pipelines saved to folders whole, with text encoders, tokenizers and decoders: what a user has on the disk."""

from __future__ import annotations

from pathlib import Path

import transformers

import diffusers
import torch

from . import PIPES
from .pipes_flux import vae
from .pipes_video import words


def flux(folder: Path) -> Path:
    """A FluxPipeline that reads its prompt and returns a picture of 16 x 16."""
    pipe = PIPES["FluxPipeline"].make()
    torch.manual_seed(1)
    config = pipe.transformer.config
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 96}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    clip = transformers.CLIPTextConfig(hidden_size=config.pooled_projection_dim, max_position_embeddings=77, **small, **special)
    t5 = transformers.T5Config(vocab_size=96, d_model=config.joint_attention_dim, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    first, second = words(), words()
    first.model_max_length = 77
    pipe.register_modules(
        text_encoder=transformers.CLIPTextModel(clip).eval(), tokenizer=first,
        text_encoder_2=transformers.T5EncoderModel(t5).eval(), tokenizer_2=second, vae=vae(),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def wan(folder: Path) -> Path:
    """A WanPipeline that reads its prompts, with guidance, and returns a video."""
    torch.manual_seed(0)
    pipe = PIPES["WanPipeline"].make()
    config = transformers.UMT5Config(
        vocab_size=96, d_model=pipe.transformer.config.text_dim, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    decoder = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe.register_modules(text_encoder=transformers.UMT5EncoderModel(config).eval(), tokenizer=words(), vae=decoder)
    pipe.save_pretrained(folder)
    return folder
