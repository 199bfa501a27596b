"""Pipelines that make images."""

import functools

import seeds
from diffusers.callbacks import SD3CFGCutoffCallback
from zoo import CASES

import diffusers
import torch

from ._case import Pipe, Way, dense, random

COND = (("cond",),)
SEQUENTIAL = (("cond",), ("uncond",))
UNCOND_FIRST = (("uncond", "cond"),)
COND_FIRST = (("cond", "uncond"),)


def build(cls, **components):
    """A pipeline of class ``cls``; whatever it takes and is not given (text encoders, tokenizers) is ``None``."""
    pipeline = getattr(diffusers, cls)
    names = [name for name in pipeline._get_signature_types() if name not in ("self", *components)]
    pipe = pipeline(**components, **dict.fromkeys(names))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny(cls, like=None, seed=0, gain=1.0, **changes):
    """A model of class ``cls`` with the zoo's config for it (or for the class ``like``) and ``changes``."""
    seeds.seed(seed)
    model = dense(getattr(diffusers, cls)(**CASES[like or cls].config | changes))
    for name, parameter in model.named_parameters():
        if "blocks" in name and parameter.dim() > 1:
            parameter.mul_(gain)
    return model


def vae(channels):
    """Latents as large as the image. Its encoding does not draw: some pipelines sample it without their generator."""
    seeds.seed(0)
    coder = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=1, latent_channels=channels, in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), sample_size=16,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    ).eval()  # fmt: skip
    return mean_only(coder)


def mean_only(coder):
    encode = coder.encode

    @functools.wraps(encode)
    def encode_mean(*args, **kwargs):
        result = encode(*args, **kwargs)
        posterior = result.latent_dist if hasattr(result, "latent_dist") else result[0]
        posterior.std = torch.zeros_like(posterior.std)
        return result

    coder.encode = encode_mean
    return coder


def picture(*size, seed=9):
    return random(1, 3, *size, seed=seed).sigmoid()


def half(cond_and_uncond):
    """The calls where guidance is on for the first half of the steps (rounded down), off from there on."""
    return lambda step, steps: cond_and_uncond if step < steps // 2 else COND


def guidance_off_at_half(pipe, step, timestep, tensors):
    """A callback. What the pipeline reads at each step decides: nothing else has to change where the calls are sequential."""
    if step == pipe.num_timesteps // 2 - 1:
        pipe._guidance_scale = 1.0
    return tensors


def given(function, **more):
    """``function``'s arguments for a pipeline, and ``more``."""
    return lambda pipe: function(pipe) | more


# Flux: guidance distilled into the weights, or two calls a step.


def flux(cls, **components):
    return lambda: build(
        cls,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(1),
        transformer=tiny("FluxTransformer2DModel"),
        **{name: make() for name, make in components.items()},
    )


def flux_prompt(pipe):
    return {"prompt_embeds": random(1, 5, 8, seed=1), "pooled_prompt_embeds": random(1, 8, seed=1), "height": 16, "width": 16}


def flux_cfg(pipe):
    negative = {"negative_prompt_embeds": random(1, 5, 8, seed=2), "negative_pooled_prompt_embeds": random(1, 8, seed=2)}
    return flux_prompt(pipe) | negative | {"true_cfg_scale": 3.0}


def flux_controlnet():
    return tiny("FluxControlNetModel", like="FluxTransformer2DModel", seed=1, num_layers=1, num_single_layers=1)


FLUX = {"denoisers": {"transformer": "FluxTransformer2DModel"}, "custom_sigmas": True}
IMG2IMG = {"image": picture(16, 16), "strength": 1.0}
KONTEXT = {"max_area": 16 * 16, "_auto_resize": False}
CONTROL = {"control_image": picture(16, 16)}

PIPES = [
    Pipe(
        cls="FluxImg2ImgPipeline",
        make=flux("FluxImg2ImgPipeline"),
        ways={
            "distilled": Way(arguments=given(flux_prompt, **IMG2IMG), calls=COND),
            "true cfg": Way(arguments=given(flux_cfg, **IMG2IMG), calls=SEQUENTIAL),
        },
        strength=True,
        **FLUX,
    ),
    Pipe(
        cls="FluxKontextPipeline",
        make=flux("FluxKontextPipeline"),
        ways={
            "distilled": Way(arguments=given(flux_prompt, image=picture(16, 16), **KONTEXT), calls=COND),
            "true cfg": Way(arguments=given(flux_cfg, image=picture(16, 16), **KONTEXT), calls=SEQUENTIAL),
            "no image": Way(arguments=given(flux_prompt, **KONTEXT), calls=COND),
        },
        notes="The reference image's tokens follow the noisy ones in hidden_states; the pipeline cuts the result.",
        **FLUX,
    ),
    Pipe(
        cls="FluxControlNetPipeline",
        make=flux("FluxControlNetPipeline", controlnet=flux_controlnet),
        ways={
            "distilled": Way(arguments=given(flux_prompt, **CONTROL), calls=COND),
            "true cfg": Way(arguments=given(flux_cfg, **CONTROL), calls=SEQUENTIAL),
            "control for half of the steps": Way(arguments=given(flux_prompt, control_guidance_end=0.5, **CONTROL), calls=COND),
        },
        notes="The control network runs once a step, before the denoiser, also where its scale is 0.",
        **FLUX,
    ),
]

# Stable Diffusion 3: both branches in one batch, and skip-layer guidance as a further call.


def sd3(cls, **components):
    return lambda: build(
        cls,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        transformer=tiny("SD3Transformer2DModel"),
        **{name: make() for name, make in components.items()},
    )


def sd3_plain(pipe):
    prompt = {"prompt_embeds": random(1, 5, 8, seed=1), "pooled_prompt_embeds": random(1, 8, seed=1)}
    return prompt | {"height": 8, "width": 8, "guidance_scale": 1.0}


def sd3_cfg(pipe):
    negative = {"negative_prompt_embeds": random(1, 5, 8, seed=2), "negative_pooled_prompt_embeds": random(1, 8, seed=2)}
    return sd3_plain(pipe) | negative | {"guidance_scale": 5.0}


def sd3_cutoff(pipe):
    """With diffusers' own callback: it cuts the prompts to the last one of the batch, at the end of the step at the ratio."""
    return sd3_cfg(pipe) | {"callback_on_step_end": SD3CFGCutoffCallback(cutoff_step_ratio=0.25)}


def sd3_skipping(*layers):
    skip = {"skip_guidance_layers": list(layers), "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.7}
    return Way(
        arguments=given(sd3_cfg, **skip),
        calls=lambda step, steps: UNCOND_FIRST + ((("cond without layers",),) if steps * 0.01 < step < steps * 0.7 else ()),
    )


SD3 = {"denoisers": {"transformer": "SD3Transformer2DModel"}, "custom_sigmas": True}
SMALL_IMG2IMG = {"image": picture(8, 8), "strength": 1.0}
SMALL_CONTROL = {"control_image": picture(8, 8)}

PIPES += [
    Pipe(
        cls="StableDiffusion3Pipeline",
        make=sd3("StableDiffusion3Pipeline"),
        ways={
            "cfg": Way(arguments=sd3_cfg, calls=UNCOND_FIRST),
            "no guidance": Way(arguments=sd3_plain, calls=COND),
            "skip-layer guidance": sd3_skipping(1),
            "skip-layer guidance, first layer": sd3_skipping(0),
            "cfg cut off": Way(
                arguments=sd3_cutoff, calls=lambda step, steps: UNCOND_FIRST if step <= int(steps * 0.25) else COND
            ),
        },
        **SD3,
    ),
    Pipe(
        cls="StableDiffusion3Img2ImgPipeline",
        make=sd3("StableDiffusion3Img2ImgPipeline"),
        ways={
            "cfg": Way(arguments=given(sd3_cfg, **SMALL_IMG2IMG), calls=UNCOND_FIRST),
            "no guidance": Way(arguments=given(sd3_plain, **SMALL_IMG2IMG), calls=COND),
        },
        strength=True,
        **SD3,
    ),
    Pipe(
        cls="StableDiffusion3ControlNetPipeline",
        make=sd3(
            "StableDiffusion3ControlNetPipeline",
            controlnet=lambda: tiny("SD3ControlNetModel", like="SD3Transformer2DModel", seed=1, num_layers=1),
        ),
        ways={
            "cfg": Way(arguments=given(sd3_cfg, **SMALL_CONTROL), calls=UNCOND_FIRST),
            "no guidance": Way(arguments=given(sd3_plain, **SMALL_CONTROL), calls=COND),
            "control for half of the steps": Way(
                arguments=given(sd3_cfg, control_guidance_end=0.5, **SMALL_CONTROL), calls=UNCOND_FIRST
            ),
        },
        notes="The control network's residuals have the batch of the denoiser's.",
        **SD3,
    ),
]

# Qwen-Image: two named calls a step.

QWEN_CHANNELS = {"in_channels": 16, "out_channels": 4}


def qwen_vae():
    seeds.seed(0)
    return mean_only(
        diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ).eval()
    )  # fmt: skip


def qwen(cls, **components):
    return lambda: build(
        cls,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=qwen_vae(),
        transformer=tiny("QwenImageTransformer2DModel", **QWEN_CHANNELS),
        **{name: make() for name, make in components.items()},
    )


def qwen_prompt(pipe):
    return {
        "prompt_embeds": random(1, 5, 8, seed=1),
        "prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
        "height": 32,
        "width": 32,
        "true_cfg_scale": 1.0,
    }


def qwen_cfg(pipe, tokens=5):
    return qwen_prompt(pipe) | {
        "negative_prompt_embeds": random(1, tokens, 8, seed=2),
        "negative_prompt_embeds_mask": torch.ones(1, tokens, dtype=torch.long),
        "true_cfg_scale": 4.0,
    }


def qwen_controlnet():
    return tiny("QwenImageControlNetModel", like="QwenImageTransformer2DModel", seed=1, num_layers=1, **QWEN_CHANNELS)


QWEN = {"denoisers": {"transformer": "QwenImageTransformer2DModel"}, "custom_sigmas": True}
QWEN_CONTROL = {"control_image": picture(32, 32)}

PIPES += [
    Pipe(
        cls="QwenImagePipeline",
        make=qwen("QwenImagePipeline"),
        ways={
            "true cfg": Way(arguments=qwen_cfg, calls=SEQUENTIAL, named=True),
            "no guidance": Way(arguments=qwen_prompt, calls=COND, named=True),
            "true cfg, a shorter negative prompt": Way(
                arguments=functools.partial(qwen_cfg, tokens=3), calls=SEQUENTIAL, named=True
            ),
        },
        **QWEN,
    ),
    Pipe(
        cls="QwenImageControlNetPipeline",
        make=qwen("QwenImageControlNetPipeline", controlnet=qwen_controlnet),
        ways={
            "true cfg": Way(arguments=given(qwen_cfg, **QWEN_CONTROL), calls=SEQUENTIAL, named=True),
            "no guidance": Way(arguments=given(qwen_prompt, **QWEN_CONTROL), calls=COND, named=True),
        },
        **QWEN,
    ),
]

# Chroma, CogView4: two calls a step, the second one only while the pipeline's guidance scale is above 1.


def chroma_plain(pipe):
    prompt = {"prompt_embeds": random(1, 5, 8, seed=1), "prompt_attention_mask": torch.ones(1, 5)}
    return prompt | {"height": 64, "width": 64, "guidance_scale": 1.0}


def chroma_cfg(pipe, tokens=5):
    mask = torch.ones(1, tokens)
    mask[:, -1] = 0
    negative = {"negative_prompt_embeds": random(1, tokens, 8, seed=2), "negative_prompt_attention_mask": mask}
    return chroma_plain(pipe) | negative | {"guidance_scale": 5.0}


def cogview4(cls, channels):
    return lambda: build(
        cls,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
        vae=vae(4),
        transformer=tiny("CogView4Transformer2DModel", in_channels=channels),
    )


def cogview4_plain(pipe):
    return {"prompt_embeds": random(1, 5, 8, seed=1), "height": 16, "width": 16, "guidance_scale": 1.0}


def cogview4_cfg(pipe, tokens=5):
    return cogview4_plain(pipe) | {"negative_prompt_embeds": random(1, tokens, 8, seed=2), "guidance_scale": 5.0}


COGVIEW4 = {
    "denoisers": {"transformer": "CogView4Transformer2DModel"},
    "custom_sigmas": True,
    "notes": "The timesteps passed are those before the scheduler's shift: the noise level is scheduler.sigmas only.",
}
OFF_AT_HALF = {"callback_on_step_end": guidance_off_at_half}

PIPES += [
    Pipe(
        cls="ChromaPipeline",
        make=lambda: build(
            "ChromaPipeline",
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            transformer=tiny("ChromaTransformer2DModel"),
        ),
        denoisers={"transformer": "ChromaTransformer2DModel"},
        ways={
            "cfg": Way(arguments=chroma_cfg, calls=SEQUENTIAL),
            "no guidance": Way(arguments=chroma_plain, calls=COND),
            "cfg off at half": Way(arguments=given(chroma_cfg, **OFF_AT_HALF), calls=half(SEQUENTIAL)),
            "cfg, a longer negative prompt": Way(arguments=functools.partial(chroma_cfg, tokens=7), calls=SEQUENTIAL),
        },
        custom_sigmas=True,
    ),
    Pipe(
        cls="CogView4Pipeline",
        make=cogview4("CogView4Pipeline", channels=4),
        ways={
            "cfg": Way(arguments=cogview4_cfg, calls=SEQUENTIAL, named=True),
            "no guidance": Way(arguments=cogview4_plain, calls=COND, named=True),
            "cfg off at half": Way(arguments=given(cogview4_cfg, **OFF_AT_HALF), calls=half(SEQUENTIAL), named=True),
            "cfg, a shorter negative prompt": Way(
                arguments=functools.partial(cogview4_cfg, tokens=3), calls=SEQUENTIAL, named=True
            ),
        },
        **COGVIEW4,
    ),
    Pipe(
        cls="CogView4ControlPipeline",
        make=cogview4("CogView4ControlPipeline", channels=8),
        ways={
            "cfg": Way(arguments=given(cogview4_cfg, **CONTROL), calls=SEQUENTIAL),
            "no guidance": Way(arguments=given(cogview4_plain, **CONTROL), calls=COND),
            "cfg off at half": Way(arguments=given(cogview4_cfg, **CONTROL, **OFF_AT_HALF), calls=half(SEQUENTIAL)),
        },
        **COGVIEW4,
    ),
]

# PixArt, Sana, AuraFlow, DiT, HunyuanDiT, HiDream: both branches in one batch, with various schedulers.


def masked(count, seed):
    """A prompt of 5 tokens, the first ``count`` of them valid, and its mask."""
    return random(1, 5, 8, seed=seed), (torch.arange(5) < count)[None].long()


def masked_plain(size):
    embeds, mask = masked(5, seed=1)
    arguments = {"prompt_embeds": embeds, "prompt_attention_mask": mask, "height": size, "width": size, "guidance_scale": 1.0}
    return lambda pipe: dict(arguments)


def masked_cfg(size, **more):
    embeds, mask = masked(4, seed=2)
    negative = {"negative_prompt_embeds": embeds, "negative_prompt_attention_mask": mask}
    return given(masked_plain(size), guidance_scale=4.0, **negative, **more)


def off_with_prompts(**slices):
    """A callback for guidance in one batch: what it cuts the prompts to is what is evaluated from the next step on."""

    def callback(pipe, step, timestep, tensors):
        if step == pipe.num_timesteps // 2 - 1:
            pipe._guidance_scale = 1.0
            tensors.update({name: tensors[name][rows] for name, rows in slices.items()})
        return tensors

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(slices)}


def flow_by(cls):
    return getattr(diffusers, cls)(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def hunyuan_plain(pipe):
    more = {"prompt_embeds_2": random(1, 6, 8, seed=3), "prompt_attention_mask_2": torch.ones(1, 6, dtype=torch.long)}
    return masked_plain(64)(pipe) | more | {"use_resolution_binning": False}


def hunyuan_cfg(pipe):
    negative = {
        "negative_prompt_embeds_2": random(1, 6, 8, seed=4),
        "negative_prompt_attention_mask_2": (torch.arange(6) < 3)[None].long(),
    }
    return hunyuan_plain(pipe) | masked_cfg(64)(pipe) | negative


def hidream():
    pipe = build(
        "HiDreamImagePipeline",
        scheduler=flow_by("UniPCMultistepScheduler"),
        transformer=tiny("HiDreamImageTransformer2DModel"),
    )
    pipe.default_sample_size = 8  # any height and width are brought to the area of this
    return pipe


def hidream_plain(pipe):
    return {
        "prompt_embeds_t5": random(1, 5, 8, seed=1),
        "prompt_embeds_llama3": random(4, 1, 5, 6, seed=1),
        "pooled_prompt_embeds": random(1, 8, seed=1),
        "height": 64,
        "width": 64,
        "guidance_scale": 1.0,
    }


def hidream_cfg(pipe):
    return hidream_plain(pipe) | {
        "negative_prompt_embeds_t5": random(1, 5, 8, seed=2),
        "negative_prompt_embeds_llama3": random(4, 1, 5, 6, seed=2),
        "negative_pooled_prompt_embeds": random(1, 8, seed=2),
        "guidance_scale": 5.0,
    }


HIDREAM_OFF = off_with_prompts(
    prompt_embeds_t5=slice(1, None), prompt_embeds_llama3=(slice(None), slice(1, None)), pooled_prompt_embeds=slice(1, None)
)

PIPES += [
    Pipe(
        cls="PixArtSigmaPipeline",
        make=lambda: build(
            "PixArtSigmaPipeline",
            scheduler=diffusers.DPMSolverMultistepScheduler(),
            transformer=tiny("PixArtTransformer2DModel"),
        ),
        denoisers={"transformer": "PixArtTransformer2DModel"},
        ways={
            "cfg": Way(arguments=masked_cfg(64, negative_prompt=None, use_resolution_binning=False), calls=UNCOND_FIRST),
            "no guidance": Way(arguments=given(masked_plain(64), use_resolution_binning=False), calls=COND),
        },
        notes="Takes sigmas, but this scheduler does not. No callback_on_step_end, no interrupt.",
    ),
    Pipe(
        cls="SanaPipeline",
        make=lambda: build(
            "SanaPipeline",
            scheduler=flow_by("DPMSolverMultistepScheduler"),
            transformer=tiny("SanaTransformer2DModel"),
        ),
        denoisers={"transformer": "SanaTransformer2DModel"},
        ways={
            "cfg": Way(arguments=masked_cfg(256, negative_prompt=None, use_resolution_binning=False), calls=UNCOND_FIRST),
            "no guidance": Way(arguments=given(masked_plain(256), use_resolution_binning=False), calls=COND),
        },
        notes="Takes sigmas, but this scheduler does not.",
    ),
    Pipe(
        cls="AuraFlowPipeline",
        make=lambda: build(
            "AuraFlowPipeline",
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
            transformer=tiny("AuraFlowTransformer2DModel", gain=3.0),
        ),
        denoisers={"transformer": "AuraFlowTransformer2DModel"},
        ways={
            "cfg": Way(arguments=masked_cfg(64), calls=UNCOND_FIRST),
            "no guidance": Way(arguments=masked_plain(64), calls=COND),
        },
        custom_sigmas=True,
        notes="No interrupt.",
    ),
    Pipe(
        cls="DiTPipeline",
        make=lambda: build(
            "DiTPipeline",
            scheduler=diffusers.DDIMScheduler(),
            vae=vae(4),
            transformer=tiny("DiTTransformer2DModel", num_embeds_ada_norm=1000),
        ),
        denoisers={"transformer": "DiTTransformer2DModel"},
        ways={
            "cfg": Way(arguments=lambda pipe: {"class_labels": [7], "guidance_scale": 4.0}, calls=COND_FIRST),
            "no guidance": Way(arguments=lambda pipe: {"class_labels": [7], "guidance_scale": 1.0}, calls=COND),
        },
        notes="No callback, no interrupt; gives the decoded image whatever output_type says.",
    ),
    Pipe(
        cls="HunyuanDiTPipeline",
        make=lambda: build(
            "HunyuanDiTPipeline",
            scheduler=diffusers.DDPMScheduler(),
            transformer=tiny("HunyuanDiT2DModel"),
            requires_safety_checker=False,
        ),
        denoisers={"transformer": "HunyuanDiT2DModel"},
        ways={
            "cfg": Way(arguments=hunyuan_cfg, calls=UNCOND_FIRST),
            "no guidance": Way(arguments=hunyuan_plain, calls=COND),
        },
    ),
    Pipe(
        cls="HiDreamImagePipeline",
        make=hidream,
        denoisers={"transformer": "HiDreamImageTransformer2DModel"},
        ways={
            "cfg": Way(arguments=hidream_cfg, calls=UNCOND_FIRST),
            "no guidance": Way(arguments=hidream_plain, calls=COND),
            "cfg off at half": Way(arguments=given(hidream_cfg, **HIDREAM_OFF), calls=half(UNCOND_FIRST)),
        },
        notes="Takes sigmas, but not with this scheduler.",
    ),
]

# Lumina 2, Z-Image, Flux 2: guidance that the pipeline itself truncates; guidance embedded, with a reference image.

ZIMAGE_SHIFT = 3.0


def zimage_plain(pipe):
    return {"prompt_embeds": [random(5, 8, seed=1)], "height": 64, "width": 64, "guidance_scale": 0.0}


def zimage_cfg(pipe, tokens=5):
    return zimage_plain(pipe) | {"negative_prompt_embeds": [random(tokens, 8, seed=2)], "guidance_scale": 4.0}


def zimage_truncated(limit):
    """Guidance ends where one minus the noise level (as the scheduler shifts it) is above ``limit``."""

    def calls(step, steps):
        sigma = 1 - step / steps
        return COND if 1 - ZIMAGE_SHIFT * sigma / (1 + (ZIMAGE_SHIFT - 1) * sigma) > limit else COND_FIRST

    return Way(arguments=given(zimage_cfg, cfg_truncation=limit), calls=calls)


def flux2_vae():
    seeds.seed(0)
    coder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=1, latent_channels=1, sample_size=64,
        use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False,
    ).eval()  # fmt: skip
    return mean_only(coder)


def flux2_prompt(pipe):
    return {"prompt_embeds": random(1, 5, 8, seed=1), "height": 64, "width": 64, "guidance_scale": 4.0}


def flux2_with_image(pipe):
    from PIL import Image

    pixels = (picture(64, 64)[0].permute(1, 2, 0) * 255).byte().numpy()
    return flux2_prompt(pipe) | {"image": Image.fromarray(pixels)}


PIPES += [
    Pipe(
        cls="Lumina2Pipeline",
        make=lambda: build(
            "Lumina2Pipeline",
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            transformer=tiny("Lumina2Transformer2DModel"),
        ),
        denoisers={"transformer": "Lumina2Transformer2DModel"},
        ways={
            "cfg": Way(arguments=masked_cfg(64), calls=SEQUENTIAL),
            "no guidance": Way(arguments=masked_plain(64), calls=COND),
            "cfg truncated at half": Way(
                arguments=given(masked_cfg(64), cfg_trunc_ratio=0.5),
                calls=lambda step, steps: COND if (step + 1) / steps > 0.5 else SEQUENTIAL,
            ),
            "cfg off at half": Way(arguments=given(masked_cfg(64), **OFF_AT_HALF), calls=half(SEQUENTIAL)),
        },
        custom_sigmas=True,
        notes="The timestep passed is 1 - the noise level. No interrupt.",
    ),
    Pipe(
        cls="ZImagePipeline",
        make=lambda: build(
            "ZImagePipeline",
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=ZIMAGE_SHIFT),
            transformer=tiny("ZImageTransformer2DModel"),
        ),
        denoisers={"transformer": "ZImageTransformer2DModel"},
        ways={
            "cfg": Way(arguments=zimage_cfg, calls=COND_FIRST),
            "no guidance": Way(arguments=zimage_plain, calls=COND),
            "cfg truncated": zimage_truncated(0.21),
            "cfg, a shorter negative prompt": Way(arguments=functools.partial(zimage_cfg, tokens=3), calls=COND_FIRST),
        },
        custom_sigmas=True,
        notes="Samples and prompts are lists, one tensor a row. The timestep passed is 1 - the noise level.",
    ),
    Pipe(
        cls="Flux2Pipeline",
        make=lambda: build(
            "Flux2Pipeline",
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=flux2_vae(),
            transformer=tiny("Flux2Transformer2DModel", guidance_embeds=True),
        ),
        denoisers={"transformer": "Flux2Transformer2DModel"},
        ways={
            "distilled": Way(arguments=flux2_prompt, calls=COND),
            "reference image": Way(arguments=flux2_with_image, calls=COND),
        },
        custom_sigmas=True,
    ),
]
