"""Video and audio pipelines.

Some run several denoising loops in one call, or take a noise level for every frame or token: their ``notes`` say so.
"""

from __future__ import annotations

import functools
from typing import Any

import seeds

import diffusers
import torch

from ._case import Pipe, Way, dense, random

COND = (("cond",),)
CFG = (("cond",), ("uncond",))
BATCHED = (("uncond", "cond"),)


def build(cls: str, **components: Any) -> Any:
    """The pipeline; components that are functions are called, in order, after the seed is set."""
    seeds.seed(0)
    made = {name: c() if isinstance(c, functools.partial) else c for name, c in components.items()}
    pipe = getattr(diffusers, cls)(**made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def net(cls: str, **config: Any) -> functools.partial:
    """A component of ``diffusers``, made when called, no weight zero."""
    return functools.partial(lambda: dense(getattr(diffusers, cls)(**config)))


def tokens(name: str = "prompt", channels: int = 16, length: int = 5, mask: str = "") -> dict[str, torch.Tensor]:
    """Embeddings of a prompt and of a negative one."""
    made = {f"{sign}{name}_embeds": random(1, length, channels, seed=1 + bool(sign)) for sign in ("", "negative_")}
    if mask:
        made |= {f"{sign}{mask}": torch.ones(1, length, dtype=torch.long) for sign in ("", "negative_")}
    return made


def halfway(pipe, step, timestep, kwargs):
    """Step-end callback: no guidance in the second half."""
    if step + 1 >= pipe.num_timesteps // 2:
        pipe._guidance_scale = 1.0
    return kwargs


def first_half(calls, then):
    """``calls`` in the first half of the steps, ``then`` after it."""
    return lambda step, steps: calls if step < steps // 2 else then


def picture() -> torch.Tensor:
    return random(1, 3, 32, 32).sigmoid()


def film() -> torch.Tensor:
    return random(5, 3, 32, 32).sigmoid()


def frames() -> list:
    """The film as images of PIL."""
    from PIL import Image

    return [Image.fromarray((frame.permute(1, 2, 0) * 255).byte().numpy()) for frame in film()]


SIZE = {"height": 32, "width": 32, "num_frames": 5}

# Wan ---------------------------------------------------------------------------------------------------------------------

WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def wan_vae():
    return net(
        "AutoencoderKLWan",
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, -0.1, 0.0], latents_std=[1.0, 1.1, 0.9, 1.2],
    )  # fmt: skip


def unipc(shift=3.0):
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def euler(shift=1.0, **config):
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **config)


TEXTLESS = {"tokenizer": None, "text_encoder": None}


def wan(**more):
    return build(
        "WanPipeline",
        **TEXTLESS | {"vae": None, "scheduler": unipc(), "transformer": net("WanTransformer3DModel", **WAN)} | more,
    )


def wan_prompt(pipe, **more):
    return tokens() | SIZE | {"guidance_scale": 3.0} | more


def wan_ways(prompt=wan_prompt, named=True):
    arguments = functools.partial(functools.partial, prompt)
    return {
        "cfg": Way(arguments=prompt, calls=CFG, named=named),
        "no guidance": Way(arguments=arguments(guidance_scale=1.0), calls=COND, named=named),
        "cfg in the first half": Way(
            arguments=arguments(callback_on_step_end=halfway), calls=first_half(CFG, COND), named=named
        ),
    }


EXPERTS = {
    "transformer": net("WanTransformer3DModel", **WAN),
    "transformer_2": net("WanTransformer3DModel", **WAN),
    "boundary_ratio": 0.8,
}
BOTH = {"transformer": "WanTransformer3DModel", "transformer_2": "WanTransformer3DModel"}
ONE = {"transformer": "WanTransformer3DModel"}


def vision(**more):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2
    )
    return {
        "image_processor": CLIPImageProcessor(crop_size=4, size=4, do_rescale=False),
        "image_encoder": functools.partial(lambda: CLIPVisionModel(config).eval()),
    }


def wan_image(**more):
    return build(
        "WanImageToVideoPipeline",
        **TEXTLESS
        | {
            "vae": wan_vae(),
            "scheduler": unipc(),
            "transformer": net("WanTransformer3DModel", **WAN | {"in_channels": 12}),
        }
        | more,
    )


def wan_image_2_1():
    sees = {"in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24}
    return wan_image(transformer=net("WanTransformer3DModel", **WAN | sees), **vision())


def wan_image_experts():
    expert = net("WanTransformer3DModel", **WAN | {"in_channels": 12})
    return wan_image(transformer=expert, transformer_2=expert, boundary_ratio=0.8)


def wan_image_prompt(pipe, **more):
    return wan_prompt(pipe, image=picture(), **more)


def wan_video():
    return build(
        "WanVideoToVideoPipeline",
        **TEXTLESS | {"vae": wan_vae(), "scheduler": euler(3.0), "transformer": net("WanTransformer3DModel", **WAN)},
    )


def wan_video_prompt(pipe, **more):
    return tokens() | {"video": list(film()), "height": 32, "width": 32, "guidance_scale": 3.0, "strength": 1.0} | more


VACE = WAN | {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 72}


def wan_vace(**more):
    return build(
        "WanVACEPipeline",
        **TEXTLESS | {"vae": wan_vae(), "scheduler": unipc(), "transformer": net("WanVACETransformer3DModel", **VACE)} | more,
    )


def wan_vace_prompt(pipe, **more):
    return wan_prompt(pipe, **more)


def wan_vace_video(pipe):
    return wan_prompt(pipe, video=frames(), mask=frames())


WANS = [
    Pipe(cls="WanPipeline", make=wan, denoisers=ONE, ways=wan_ways()),
    Pipe(
        cls="WanPipeline two experts",
        make=lambda: wan(**EXPERTS),
        denoisers=BOTH,
        ways=wan_ways()
        | {"two scales": Way(arguments=functools.partial(wan_prompt, guidance_scale_2=2.0), calls=CFG, named=True)},
        notes="Steps at timesteps below boundary_ratio * 1000 call transformer_2 instead of transformer.",
    ),
    Pipe(
        cls="WanPipeline expanded timesteps",
        make=lambda: wan(expand_timesteps=True),
        denoisers=ONE,
        ways=wan_ways(),
        notes="One timestep a token, of shape (batch, tokens), all equal.",
    ),
    Pipe(cls="WanImageToVideoPipeline", make=wan_image_2_1, denoisers=ONE, ways=wan_ways(wan_image_prompt)),
    Pipe(cls="WanImageToVideoPipeline two experts", make=wan_image_experts, denoisers=BOTH, ways=wan_ways(wan_image_prompt)),
    Pipe(
        cls="WanImageToVideoPipeline expanded timesteps",
        make=lambda: wan_image(transformer=net("WanTransformer3DModel", **WAN), expand_timesteps=True),
        denoisers=ONE,
        ways=wan_ways(wan_image_prompt),
        notes="One timestep a token, of shape (batch, tokens): 0 for those of the first frame, which is the image.",
    ),
    Pipe(
        cls="WanVideoToVideoPipeline",
        make=wan_video,
        denoisers=ONE,
        ways=wan_ways(wan_video_prompt, named=False),
        strength=True,
    ),
    Pipe(
        cls="WanVACEPipeline",
        make=wan_vace,
        denoisers={"transformer": "WanVACETransformer3DModel"},
        ways=wan_ways(wan_vace_prompt) | {"video and mask": Way(arguments=wan_vace_video, calls=CFG, named=True)},
    ),
]


# LTX ---------------------------------------------------------------------------------------------------------------------


def ltx():
    return build(
        "LTXPipeline",
        **TEXTLESS,
        vae=None,
        scheduler=euler(use_dynamic_shifting=True, shift_terminal=0.1),
        transformer=net(
            "LTXVideoTransformer3DModel",
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2,
            caption_channels=16,
        ),
    )  # fmt: skip


def ltx_prompt(pipe, **more):
    more = {"height": 128, "width": 128, "num_frames": 9, "guidance_scale": 3.0} | more
    return tokens(mask="prompt_attention_mask") | more


def ltx2():
    connector = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    pipe = build(
        "LTX2Pipeline",
        **TEXTLESS,
        scheduler=euler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=net(
            "AutoencoderKLLTX2Video",
            latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
            decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,),
            patch_size=1, patch_size_t=1, decoder_causal=False, spatial_compression_ratio=8, temporal_compression_ratio=4,
        ),
        audio_vae=net(
            "AutoencoderKLLTX2Audio",
            base_channels=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, resolution=32, latent_channels=2,
            mid_block_add_attention=False, mel_bins=8,
        ),
        connectors=functools.partial(ltx2_connectors, connector),
        transformer=net(
            "LTX2VideoTransformer3DModel",
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=2, caption_channels=16, rope_double_precision=False, rope_type="split",
            perturbed_attn=True,
        ),
        vocoder=None,
    )  # fmt: skip
    return pipe


def ltx2_connectors(connector):
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    each = {f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in connector.items()}
    return dense(
        LTX2TextConnectors(
            caption_channels=16,
            text_proj_in_factor=2,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            rope_type="split",
            **each,
        )
    )


def ltx2_prompt(pipe, cfg=False, stg=False, isolated=False, **more):
    scales = {"guidance_scale": 3.0 if cfg else 1.0, "stg_scale": float(stg), "modality_scale": 3.0 if isolated else 1.0}
    scales |= {f"audio_{name}": scale for name, scale in scales.items()}
    size = {"height": 32, "width": 32, "num_frames": 5, "spatio_temporal_guidance_blocks": [1]}
    return tokens(channels=32, mask="prompt_attention_mask") | scales | size | more


def one_term_less(pipe, step, timestep, kwargs):
    if step + 1 >= pipe.num_timesteps // 2:
        pipe._stg_scale = pipe._audio_stg_scale = 0.0
    return kwargs


def ltx2_way(calls, **arguments):
    return Way(arguments=functools.partial(ltx2_prompt, **arguments), calls=calls, named=True)


STG, ISOLATED = (("stg",),), (("isolated",),)

LTXS = [
    Pipe(
        cls="LTXPipeline",
        make=ltx,
        denoisers={"transformer": "LTXVideoTransformer3DModel"},
        ways={
            "cfg": Way(arguments=ltx_prompt, calls=BATCHED, named=True),
            "no guidance": Way(arguments=functools.partial(ltx_prompt, guidance_scale=1.0), calls=COND, named=True),
        },
        notes="The one cache context is named cond_uncond, with guidance and without.",
    ),
    Pipe(
        cls="LTX2Pipeline",
        make=ltx2,
        denoisers={"transformer": "LTX2VideoTransformer3DModel"},
        ways={
            "cfg": ltx2_way(BATCHED, cfg=True),
            "no guidance": ltx2_way(COND),
            "cfg, perturbed": ltx2_way(BATCHED + STG, cfg=True, stg=True),
            "cfg, isolated": ltx2_way(BATCHED + ISOLATED, cfg=True, isolated=True),
            "everything": ltx2_way(BATCHED + STG + ISOLATED, cfg=True, stg=True, isolated=True),
            "perturbed": ltx2_way(COND + STG, stg=True),
            "perturbed, isolated": ltx2_way(COND + STG + ISOLATED, stg=True, isolated=True),
            "perturbed in the first half": ltx2_way(
                first_half(BATCHED + STG + ISOLATED, BATCHED + ISOLATED),
                cfg=True, stg=True, isolated=True, callback_on_step_end=one_term_less,
            ),
        },
        custom_sigmas=True,
        notes="Perturbed (stg): attention off in some blocks; isolated: no attention between video and audio. Both have the "
        "prompt and timestep of the cond half; only their keyword arguments tell them apart.",
    ),
]  # fmt: skip

# HunyuanVideo ------------------------------------------------------------------------------------------------------------

HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
    "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 16, "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
HUNYUAN_TEXTLESS = TEXTLESS | {"tokenizer_2": None, "text_encoder_2": None}


def hunyuan_vae():
    return net(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, scaling_factor=1.0,
        mid_block_add_attention=False,
    )  # fmt: skip


def hunyuan():
    return build(
        "HunyuanVideoPipeline",
        **HUNYUAN_TEXTLESS,
        vae=None,
        scheduler=euler(7.0),
        transformer=net("HunyuanVideoTransformer3DModel", **HUNYUAN),
    )


def hunyuan_prompt(pipe, **more):
    pooled = {"pooled_prompt_embeds": random(1, 8, seed=3), "negative_pooled_prompt_embeds": random(1, 8, seed=4)}
    return tokens(mask="prompt_attention_mask") | pooled | SIZE | {"true_cfg_scale": 1.0} | more


def hunyuan_ways(prompt=hunyuan_prompt, named=True):
    return {
        "embedded guidance": Way(arguments=prompt, calls=COND, named=named),
        "true cfg": Way(arguments=functools.partial(prompt, true_cfg_scale=3.0), calls=CFG, named=named),
    }


def hunyuan_image(kind="latent_concat"):
    return build(
        "HunyuanVideoImageToVideoPipeline",
        **HUNYUAN_TEXTLESS,
        vae=hunyuan_vae(),
        scheduler=euler(7.0),
        image_processor=None,
        transformer=net(
            "HunyuanVideoTransformer3DModel",
            **HUNYUAN
            | {
                "in_channels": 9 if kind == "latent_concat" else 4,
                "image_condition_type": kind,
                "guidance_embeds": kind == "token_replace",
            },
        ),
    )


def hunyuan_image_prompt(pipe, **more):
    return hunyuan_prompt(pipe, image=picture(), **more)


def framepack():
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2
    )
    return build(
        "HunyuanVideoFramepackPipeline",
        **HUNYUAN_TEXTLESS,
        vae=hunyuan_vae(),
        scheduler=euler(7.0, use_dynamic_shifting=True),
        image_encoder=functools.partial(lambda: SiglipVisionModel(config).eval()),
        feature_extractor=SiglipImageProcessor(size={"height": 4, "width": 4}),
        transformer=net(
            "HunyuanVideoFramepackTransformer3DModel",
            **HUNYUAN,
            has_image_proj=True,
            image_proj_dim=8,
            has_clean_x_embedder=True,
        ),
    )


def framepack_prompt(pipe, sections=1, **more):
    more = {"latent_window_size": 2, "num_frames": 5 * sections, "output_type": "pt"} | more
    return hunyuan_image_prompt(pipe, **more)


def framepack_loops(calls, **arguments):
    arguments = functools.partial(framepack_prompt, sections=2, **arguments)
    return Way(arguments=arguments, calls=calls * 2, loops=2)


def hunyuan15():
    pipe = build(
        "HunyuanVideo15Pipeline",
        **HUNYUAN_TEXTLESS,
        scheduler=euler(7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
        vae=net(
            "AutoencoderKLHunyuanVideo15",
            latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
            temporal_compression_ratio=2, downsample_match_channel=False, upsample_match_channel=False,
        ),
        transformer=net(
            "HunyuanVideo15Transformer3DModel",
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_refiner_layers=1,
            text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8, rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        ),
    )  # fmt: skip
    pipe.vision_num_semantic_tokens = 3
    return pipe


def hunyuan15_prompt(pipe, guider="ClassifierFreeGuidance", **config):
    """The guider is a component: each way sets its own."""
    if "skip_layer_config" in config:
        config = config | {"skip_layer_config": diffusers.LayerSkipConfig(**config["skip_layer_config"])}
    pipe.guider = getattr(diffusers, guider)(**{"guidance_scale": 3.0} | config)
    given = {"height": 16, "width": 16, "num_frames": 3}
    for seed, sign in enumerate(("", "negative_")):
        given |= {
            f"{sign}prompt_embeds": random(1, 5, 16, seed=seed + 1),
            f"{sign}prompt_embeds_mask": torch.ones(1, 5),
            f"{sign}prompt_embeds_2": random(1, 4, 12, seed=seed + 3),
            f"{sign}prompt_embeds_mask_2": torch.ones(1, 4),
        }
    return given


def hunyuan15_way(calls, **arguments):
    return Way(arguments=functools.partial(hunyuan15_prompt, **arguments), calls=calls, named=True)


FRAMEPACK_NOTES = (
    "Each section of the video is a denoising loop of its own, over the same scheduler, set anew; a loop ends without a "
    "callback. The video is asked for in place of the latents, which come as a list, one for each section."
)

HUNYUANS = [
    Pipe(
        cls="HunyuanVideoPipeline",
        make=hunyuan,
        denoisers={"transformer": "HunyuanVideoTransformer3DModel"},
        ways=hunyuan_ways(),
        custom_sigmas=True,
    ),
    Pipe(
        cls="HunyuanVideoImageToVideoPipeline",
        make=hunyuan_image,
        denoisers={"transformer": "HunyuanVideoTransformer3DModel"},
        ways=hunyuan_ways(hunyuan_image_prompt, named=False),
        custom_sigmas=True,
    ),
    Pipe(
        cls="HunyuanVideoImageToVideoPipeline first frame replaced",
        make=functools.partial(hunyuan_image, "token_replace"),
        denoisers={"transformer": "HunyuanVideoTransformer3DModel"},
        ways=hunyuan_ways(hunyuan_image_prompt, named=False),
        custom_sigmas=True,
    ),
    Pipe(
        cls="HunyuanVideoFramepackPipeline",
        make=framepack,
        denoisers={"transformer": "HunyuanVideoFramepackTransformer3DModel"},
        ways={
            "embedded guidance": Way(arguments=framepack_prompt, calls=COND),
            "true cfg": Way(arguments=functools.partial(framepack_prompt, true_cfg_scale=3.0), calls=CFG),
            "two sections": framepack_loops(COND),
            "two sections, true cfg": framepack_loops(CFG, true_cfg_scale=3.0),
            "two sections forwards": framepack_loops(COND, sampling_type="vanilla"),
        },
        custom_sigmas=True,
        notes=FRAMEPACK_NOTES,
    ),
    Pipe(
        cls="HunyuanVideo15Pipeline",
        make=hunyuan15,
        denoisers={"transformer": "HunyuanVideo15Transformer3DModel"},
        ways={
            "cfg": hunyuan15_way(CFG),
            "no guidance": hunyuan15_way(COND, guidance_scale=1.0),
            "cfg in the first half": hunyuan15_way(first_half(CFG, COND), stop=0.5),
            "cfg in the second half": hunyuan15_way(first_half(COND, CFG), start=0.5),
            "cfg, feed-forward skipped": hunyuan15_way(
                lambda step, steps: CFG if step == 0 else (*CFG, ("skipping",)),
                guider="SkipLayerGuidance", skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0,
                skip_layer_config={"indices": [1], "fqn": "transformer_blocks", "skip_attention": False},
            ),
        },
        custom_sigmas=True,
        notes="Its guider decides about the branches; their contexts are named pred_cond and so on. It takes no callbacks.",
    ),
]  # fmt: skip

# Kandinsky, CogVideoX, Mochi ---------------------------------------------------------------------------------------------


def kandinsky():
    return build(
        "Kandinsky5T2VPipeline",
        **HUNYUAN_TEXTLESS,
        vae=None,
        scheduler=euler(5.0),
        transformer=net(
            "Kandinsky5Transformer3DModel",
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=16, ff_dim=32,
            num_text_blocks=2, num_visual_blocks=2, axes_dims=(4, 6, 6), visual_cond=True,
        ),
    )  # fmt: skip


def kandinsky_prompt(pipe, **more):
    given = SIZE | {"guidance_scale": 3.0}
    for seed, sign in enumerate(("", "negative_")):
        given |= {
            f"{sign}prompt_embeds_qwen": random(1, 5 - seed, 16, seed=seed + 1),
            f"{sign}prompt_embeds_clip": random(1, 8, seed=seed + 3),
            f"{sign}prompt_cu_seqlens": torch.tensor([0, 5 - seed], dtype=torch.int32),
        }
    return given | more


def cogvideo(cls="CogVideoXPipeline", scheduler="CogVideoXDDIMScheduler", vae=None, **config):
    return build(
        cls,
        **TEXTLESS,
        vae=vae,
        scheduler=getattr(diffusers, scheduler)(prediction_type="v_prediction", timestep_spacing="trailing"),
        transformer=net(
            "CogVideoXTransformer3DModel",
            **{
                "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
                "text_embed_dim": 16, "num_layers": 2, "sample_width": 4, "sample_height": 4, "sample_frames": 5,
                "max_text_seq_length": 5,
            } | config,
        ),
    )  # fmt: skip


def cogvideo_video():
    vae = net(
        "AutoencoderKLCogVideoX",
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=1.0,
    )  # fmt: skip
    return cogvideo("CogVideoXVideoToVideoPipeline", vae=vae)


def cogvideo_prompt(pipe, **more):
    return tokens() | SIZE | {"guidance_scale": 3.0} | more


def cogvideo_video_prompt(pipe, **more):
    return tokens() | {"video": list(film()), "height": 32, "width": 32, "guidance_scale": 3.0, "strength": 1.0} | more


def batched_ways(prompt, named=True):
    return {
        "cfg": Way(arguments=prompt, calls=BATCHED, named=named),
        "no guidance": Way(arguments=functools.partial(prompt, guidance_scale=1.0), calls=COND, named=named),
    }


def mochi():
    return build(
        "MochiPipeline",
        **TEXTLESS,
        vae=None,
        scheduler=euler(invert_sigmas=True),
        transformer=net(
            "MochiTransformer3DModel",
            num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
            text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
        ),
    )  # fmt: skip


def mochi_prompt(pipe, **more):
    return tokens(mask="prompt_attention_mask") | SIZE | {"num_frames": 7, "guidance_scale": 3.0} | more


COGVIDEO = {"transformer": "CogVideoXTransformer3DModel"}

OTHERS = [
    Pipe(
        cls="Kandinsky5T2VPipeline",
        make=kandinsky,
        denoisers={"transformer": "Kandinsky5Transformer3DModel"},
        ways=wan_ways(kandinsky_prompt, named=False),
        notes="It changes its latents in place: every step passes the same tensor. It keeps no _current_timestep.",
    ),
    Pipe(
        cls="CogVideoXPipeline",
        make=cogvideo,
        denoisers=COGVIDEO,
        ways=batched_ways(cogvideo_prompt)
        | {"dynamic cfg": Way(arguments=functools.partial(cogvideo_prompt, use_dynamic_cfg=True), calls=BATCHED, named=True)},
        notes="Its schedulers have neither sigmas nor a step index.",
    ),
    Pipe(
        cls="CogVideoXPipeline DPM",
        make=functools.partial(cogvideo, scheduler="CogVideoXDPMScheduler", use_rotary_positional_embeddings=True),
        denoisers=COGVIDEO,
        ways=batched_ways(cogvideo_prompt),
    ),
    Pipe(
        cls="CogVideoXVideoToVideoPipeline",
        make=cogvideo_video,
        denoisers=COGVIDEO,
        ways=batched_ways(cogvideo_video_prompt),
        strength=True,
    ),
    Pipe(
        cls="MochiPipeline",
        make=mochi,
        denoisers={"transformer": "MochiTransformer3DModel"},
        ways=batched_ways(mochi_prompt),
        notes="Timesteps and sigmas are those of the signal, not of the noise: they rise from 0.",
    ),
]

# SkyReels ----------------------------------------------------------------------------------------------------------------


def skyreels(cls="SkyReelsV2Pipeline", **config):
    return build(
        cls,
        **TEXTLESS,
        vae=None,
        scheduler=unipc(8.0),
        transformer=net("SkyReelsV2Transformer3DModel", **WAN, **config),
    )


def forcing(calls=CFG, loops=1, **arguments):
    """Every way says its size of causal blocks: the transformer keeps that of the last call in its config."""
    arguments = functools.partial(wan_prompt, **{"prompt": None, "causal_block_size": 1} | arguments)
    if loops > 1:
        return Way(arguments=arguments, calls=calls * loops, named=True, loops=loops)
    return Way(arguments=arguments, calls=calls, named=True)


def staggered(calls, rows):
    """``rows`` more calls of the denoiser than steps, which are counted to the last step."""
    return lambda step, steps: calls * (1 + rows) if step == steps - 1 else calls


LONG = {"num_frames": 13, "base_num_frames": 9, "overlap_history": 5}

SKYREELS = [
    Pipe(
        cls="SkyReelsV2Pipeline",
        make=skyreels,
        denoisers={"transformer": "SkyReelsV2Transformer3DModel"},
        ways=wan_ways(),
    ),
    Pipe(
        cls="SkyReelsV2DiffusionForcingPipeline",
        make=functools.partial(skyreels, "SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True),
        denoisers={"transformer": "SkyReelsV2Transformer3DModel"},
        ways={
            "cfg": forcing(),
            "no guidance": forcing(COND, guidance_scale=1.0),
            "cfg in the first half": forcing(first_half(CFG, COND), callback_on_step_end=halfway),
            "staggered frames": forcing(staggered(CFG, 2), num_frames=9, ar_step=1),
            "staggered blocks": forcing(staggered(CFG, 1), num_frames=13, ar_step=1, causal_block_size=2),
            "long video": forcing(loops=2, **LONG),
            "long video, noisy history": forcing(loops=2, addnoise_condition=20, **LONG),
        },
        notes="One timestep a latent frame, of shape (batch, frames); each frame has its own copy of the scheduler, and the "
        "pipeline's own is never stepped. A long video is several loops, whose first frames are kept at timestep 0. "
        "Staggered: a frame starts ar_step steps after the one before it, so there are more calls than steps.",
    ),
]

# Allegro, Latte ----------------------------------------------------------------------------------------------------------


def allegro():
    return build(
        "AllegroPipeline",
        **TEXTLESS,
        vae=None,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
        transformer=net(
            "AllegroTransformer3DModel",
            num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, sample_height=4,
            sample_width=4, sample_frames=2, caption_channels=16,
        ),
    )  # fmt: skip


def allegro_prompt(pipe, **more):
    return tokens(mask="prompt_attention_mask") | SIZE | {"guidance_scale": 3.0} | more


def latte():
    return build(
        "LattePipeline",
        **TEXTLESS,
        vae=None,
        scheduler=diffusers.DDIMScheduler(),
        transformer=net(
            "LatteTransformer3DModel",
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=24,
            attention_bias=True, sample_size=4, patch_size=2, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=16, video_length=2,
        ),
    )  # fmt: skip


def latte_prompt(pipe, **more):
    size = {"height": 32, "width": 32, "video_length": 2, "mask_feature": False}
    return tokens() | size | {"negative_prompt": None, "guidance_scale": 3.0} | more


ALLEGRO = [
    Pipe(
        cls="AllegroPipeline",
        make=allegro,
        denoisers={"transformer": "AllegroTransformer3DModel"},
        ways=batched_ways(functools.partial(allegro_prompt, negative_prompt=None), named=False),
    ),
    Pipe(
        cls="LattePipeline",
        make=latte,
        denoisers={"transformer": "LatteTransformer3DModel"},
        ways=batched_ways(latte_prompt, named=False)
        | {
            "no attention over time": Way(
                arguments=functools.partial(latte_prompt, enable_temporal_attentions=False), calls=BATCHED
            )
        },
    ),
]

# Audio -------------------------------------------------------------------------------------------------------------------


def oobleck(channels):
    return net(
        "AutoencoderOobleck",
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=channels,
        channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip


def stable_audio():
    return build(
        "StableAudioPipeline",
        **TEXTLESS,
        vae=oobleck(4),
        projection_model=net(
            "StableAudioProjectionModel", text_encoder_dim=16, conditioning_dim=8, min_value=0, max_value=32
        ),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
        transformer=net(
            "StableAudioDiTModel",
            sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            num_key_value_attention_heads=1, cross_attention_dim=8, cross_attention_input_dim=8, time_proj_dim=8,
            global_states_input_dim=16,
        ),
    )  # fmt: skip


def stable_audio_prompt(pipe, negative=True, **more):
    embeds = {name: t for name, t in tokens().items() if negative or "negative" not in name}
    return embeds | {"guidance_scale": 3.0, "output_type": "pt"} | more


def words():
    """A tokenizer that knows the letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(32, 127)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(["?", *letters])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")


def reader():
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        vocab_size=96, max_position_embeddings=256,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def ace_step(turbo=False):
    shape = {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "sliding_window": 8,
    }  # fmt: skip
    return build(
        "AceStepPipeline",
        vae=oobleck(4),
        text_encoder=functools.partial(reader),
        tokenizer=words(),
        scheduler=euler(num_train_timesteps=1),
        condition_encoder=functools.partial(ace_step_conditions, shape),
        transformer=net(
            "AceStepTransformer1DModel",
            num_hidden_layers=2, in_channels=12, audio_acoustic_hidden_dim=4, is_turbo=turbo, **shape,
        ),
    )  # fmt: skip


def ace_step_conditions(shape):
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    encoder = AceStepConditionEncoder(
        text_hidden_dim=16, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1, **shape
    )
    encoder.silence_latent = random(1, 64, 4)
    return dense(encoder)


def ace_step_prompt(pipe, **more):
    text = {"prompt": "a piano", "lyrics": "la la", "audio_duration": 4.0, "max_text_length": 16, "max_lyric_length": 16}
    return text | {"guidance_scale": 3.0} | more


def ace_step_way(calls, **arguments):
    return Way(arguments=functools.partial(ace_step_prompt, **arguments), calls=calls)


ACE_BATCHED, PLAIN = (("cond", "uncond"),), (("plain",),)
COVER = {"task_type": "cover", "audio_cover_strength": 0.5}

AUDIO = [
    Pipe(
        cls="StableAudioPipeline",
        make=stable_audio,
        denoisers={"transformer": "StableAudioDiTModel"},
        ways=batched_ways(stable_audio_prompt, named=False)
        | {
            "cfg, nothing negative": Way(arguments=functools.partial(stable_audio_prompt, negative=False), calls=BATCHED),
        },
        notes="The sound is asked for in place of the latents, which come as an object. The timestep is a function of sigma.",
    ),
    Pipe(
        cls="AceStepPipeline",
        make=ace_step,
        denoisers={"transformer": "AceStepTransformer1DModel"},
        ways={
            "cfg": ace_step_way(ACE_BATCHED),
            "no guidance": ace_step_way(COND, guidance_scale=1.0),
            "cfg in the first half": ace_step_way(
                lambda step, steps: ACE_BATCHED if step / steps < 0.49 else COND, shift=1.0, cfg_interval_end=0.49
            ),
            "cfg in the second half": ace_step_way(
                lambda step, steps: COND if step / steps < 0.49 else ACE_BATCHED, shift=1.0, cfg_interval_start=0.49
            ),
            "cover": ace_step_way(COND + PLAIN, guidance_scale=1.0, **COVER),
            "cover, cfg": ace_step_way(ACE_BATCHED + PLAIN, **COVER),
        },
        notes="The conditional half of a batch comes first. Timesteps are noise levels, 1 to 0.",
    ),
    Pipe(
        cls="AceStepPipeline distilled",
        make=functools.partial(ace_step, turbo=True),
        denoisers={"transformer": "AceStepTransformer1DModel"},
        ways={"no guidance": ace_step_way(COND, guidance_scale=1.0), "scale without effect": ace_step_way(COND)},
    ),
]

PIPES = [*WANS, *LTXS, *HUNYUANS, *OTHERS, *SKYREELS, *ALLEGRO, *AUDIO]
