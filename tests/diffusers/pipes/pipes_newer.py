"""Pipelines of newer models: LongCat, Kandinsky 5, Cosmos."""

import functools

import diffusers
import torch

from ._case import Pipe, Way, random
from .pipes_images import build, tiny
from .pipes_video import CFG, COND, HUNYUAN_TEXTLESS, euler, kandinsky_prompt, net, tokens
from .pipes_video import build as build_video

# Images -------------------------------------------------------------------------------------------------------------------


def longcat():
    pipe = build(
        "LongCatImagePipeline",
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=tiny("LongCatImageTransformer2DModel", in_channels=64),
    )
    # It counts prompts also where embeddings are given, which it then refuses: so these come from where it reads texts.
    pipe._encode_prompt = lambda prompt: random(1, 5, 8, seed=len(prompt[0]))
    return pipe


def longcat_prompt(pipe, **more):
    given = {"prompt": "a cat", "negative_prompt": "", "enable_prompt_rewrite": False, "guidance_scale": 3.0}
    return given | {"height": 32, "width": 32} | more


class Typed(torch.nn.Module):
    """In the place of a part of which only the dtype and the device are asked."""

    dtype, device = torch.float32, torch.device("cpu")


def kandinsky5(cls, visual=4, **more):
    return build_video(
        cls,
        **HUNYUAN_TEXTLESS,
        vae=None,
        scheduler=euler(5.0),
        transformer=net(
            "Kandinsky5Transformer3DModel",
            in_visual_dim=visual, out_visual_dim=visual, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=16, ff_dim=32,
            num_text_blocks=2, num_visual_blocks=2, axes_dims=(4, 6, 6), **more,
        ),
    )  # fmt: skip


def kandinsky5_image_prompt(pipe, **more):
    given = kandinsky_prompt(pipe, **more)
    pipe.resolutions = [(32, 32)]
    return {name: value for name, value in given.items() if name != "num_frames"}


# Videos -------------------------------------------------------------------------------------------------------------------


class Unchecked(Typed):
    """In the place of the safety checker, which is a package of its own."""

    def check_text_safety(self, prompt):
        return True


def cosmos(cls, scheduler, **more):
    return build_video(
        cls,
        tokenizer=None, text_encoder=None, vae=None, safety_checker=Unchecked(), scheduler=scheduler,
        transformer=net(
            "CosmosTransformer3DModel",
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2,
            text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False, **more,
        ),
    )  # fmt: skip


def cosmos_prompt(pipe, **more):
    return tokens() | {"height": 32, "width": 32, "guidance_scale": 3.0} | more


def guided(prompt, named=False, off=1.0):
    return {
        "cfg": Way(arguments=prompt, calls=CFG, named=named),
        "no guidance": Way(arguments=functools.partial(prompt, guidance_scale=off), calls=COND, named=named),
    }


PIPES = [
    Pipe(
        cls="LongCatImagePipeline",
        make=longcat,
        denoisers={"transformer": "LongCatImageTransformer2DModel"},
        ways=guided(longcat_prompt, named=True),
        custom_sigmas=True,
    ),
    Pipe(
        cls="Kandinsky5T2IPipeline",
        make=functools.partial(kandinsky5, "Kandinsky5T2IPipeline"),
        denoisers={"transformer": "Kandinsky5Transformer3DModel"},
        ways=guided(kandinsky5_image_prompt),
    ),
    Pipe(
        cls="CosmosTextToWorldPipeline",
        make=lambda: cosmos(
            "CosmosTextToWorldPipeline",
            diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min"),
        ),
        denoisers={"transformer": "CosmosTransformer3DModel"},
        ways=guided(functools.partial(cosmos_prompt, num_frames=9)),
        notes="It makes each step of its scheduler twice, and sets the index back in between.",
    ),
    Pipe(
        cls="Cosmos2TextToImagePipeline",
        make=lambda: cosmos("Cosmos2TextToImagePipeline", diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)),
        denoisers={"transformer": "CosmosTransformer3DModel"},
        ways=guided(cosmos_prompt),
        notes="Timesteps are sigma / (sigma + 1).",
    ),
]
