"""Flux pipelines."""

import seeds
from zoo import CASES

import diffusers

from ._case import Pipe, Way, dense, random


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=1, latent_channels=1, in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), sample_size=16,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    ).eval()  # fmt: skip


def make():
    seeds.seed(0)
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=dense(diffusers.FluxTransformer2DModel(**CASES["FluxTransformer2DModel"].config)),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt(pipe):
    return {"prompt_embeds": random(1, 5, 8, seed=1), "pooled_prompt_embeds": random(1, 8, seed=1), "height": 16, "width": 16}


def with_true_cfg(pipe):
    negative = {"negative_prompt_embeds": random(1, 5, 8, seed=2), "negative_pooled_prompt_embeds": random(1, 8, seed=2)}
    return prompt(pipe) | negative | {"true_cfg_scale": 3.0}


PIPES = [
    Pipe(
        cls="FluxPipeline",
        make=make,
        denoisers={"transformer": "FluxTransformer2DModel"},
        ways={
            "distilled": Way(arguments=prompt, calls=(("cond",),), named=True),
            "true cfg": Way(arguments=with_true_cfg, calls=(("cond",), ("uncond",)), named=True),
        },
        custom_sigmas=True,
    ),
]
