"""What the example workflows are made of, one function a workflow; `write_workflows.py` writes the files.

Settings of the MagCache nodes are those that magpolicy's presets recommend; the rest is each model's usual way of sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import magpolicy

PROMPT = "a lighthouse on a cliff at dusk, waves below, warm light in the windows"
MOTION = "a lighthouse on a cliff at dusk, waves roll in and break on the rocks, the camera moves slowly closer"
AVOID = "blurry, low quality, distorted"


@dataclass(frozen=True)
class Node:
    """A node; given to another one it stands for its first output, `node[1]` for its second."""

    id: int
    kind: str
    inputs: dict[str, Any]
    title: str | None = None

    def __getitem__(self, slot: int) -> Output:
        return Output(self, slot)


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    node: Node
    slot: int = 0


@dataclass
class Flow:
    """A workflow under construction; nodes are numbered as they are added."""

    note: str = ""
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, title: str | None = None, /, **inputs: Any) -> Node:
        ready = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(len(self.nodes) + 1, kind, ready, title)
        self.nodes.append(node)
        return node

    def magcache(self, model: Any, model_type: str, title: str | None = None) -> Node:
        preset = magpolicy.preset(model_type)
        return self.add(
            "MagCache", title,
            model=model, model_type=model_type, magcache_thresh=preset.threshold, retention_ratio=preset.retention,
            magcache_K=preset.max_skips, start_step=0, end_step=-1,
        )  # fmt: skip

    def speed_up(self, model: Any) -> Node:
        settings = dict(speedup="balanced", custom_speedup=2.0, learn="as it goes")
        return self.add("MagPolicySpeedUp", model=model, **settings)

    def unet(self, file: str, title: str | None = None) -> Node:
        return self.add("UNETLoader", title, unet_name=file, weight_dtype="default")

    def clip(self, *files: str, kind: str) -> Node:
        if len(files) == 1:
            return self.add("CLIPLoader", clip_name=files[0], type=kind, device="default")
        return self.add("DualCLIPLoader", clip_name1=files[0], clip_name2=files[1], type=kind, device="default")

    def vae(self, file: str) -> Node:
        return self.add("VAELoader", vae_name=file)

    def prompt(self, clip: Any, text: str, title: str = "Positive prompt") -> Node:
        return self.add("CLIPTextEncode", title, clip=clip, text=text)

    def sample(self, model: Any, positive: Any, negative: Any, latent: Any, **settings: Any) -> Node:
        usual = dict(seed=1, steps=20, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
        inputs = dict(model=model, positive=positive, negative=negative, latent_image=latent)
        return self.add("KSampler", **inputs, **usual | settings)

    def save(self, samples: Any, vae: Any) -> None:
        image = self.add("VAEDecode", samples=samples, vae=vae)
        self.add("SaveImage", images=image, filename_prefix="magpolicy")

    def film(self, samples: Any, vae: Any, fps: float) -> None:
        images = self.add("VAEDecode", samples=samples, vae=vae)
        video = self.add("CreateVideo", images=images, fps=fps)
        self.add("SaveVideo", video=video, filename_prefix="video/magpolicy", format="auto", codec="auto")


def _flux(flow: Flow, patch: Callable[[Node], Node]) -> None:
    model = patch(flow.unet("flux1-dev.safetensors"))
    clip = flow.clip("clip_l.safetensors", "t5xxl_fp16.safetensors", kind="flux")
    text = flow.prompt(clip, PROMPT)
    guided = flow.add("FluxGuidance", conditioning=text, guidance=3.5)
    nothing = flow.add("ConditioningZeroOut", conditioning=text)
    latent = flow.add("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    flow.save(flow.sample(model, guided, nothing, latent, steps=28), flow.vae("ae.safetensors"))


def flux(flow: Flow) -> None:
    """FLUX.1-dev, text to image."""
    _flux(flow, lambda model: flow.magcache(model, "flux"))


def flux_speed_up(flow: Flow) -> None:
    """FLUX.1-dev with the node Speed up: half of the steps compute, and runs teach later ones."""
    _flux(flow, flow.speed_up)


def _kontext(flow: Flow, patch: Callable[[Node], Node]) -> None:
    model = patch(flow.unet("flux1-dev-kontext_fp8_scaled.safetensors"))
    clip = flow.clip("clip_l.safetensors", "t5xxl_fp16.safetensors", kind="flux")
    vae = flow.vae("ae.safetensors")
    image = flow.add("FluxKontextImageScale", image=flow.add("LoadImage", image="example.png"))
    latent = flow.add("VAEEncode", pixels=image, vae=vae)
    text = flow.prompt(clip, "the same scene in winter, snow on the roofs")
    edit = flow.add("ReferenceLatent", conditioning=text, latent=latent)
    guided = flow.add("FluxGuidance", conditioning=edit, guidance=2.5)
    nothing = flow.add("ConditioningZeroOut", conditioning=text)
    flow.save(flow.sample(model, guided, nothing, latent), vae)


def flux_kontext(flow: Flow) -> None:
    """FLUX.1-Kontext-dev, editing an image."""
    _kontext(flow, lambda model: flow.magcache(model, "flux_kontext"))


def flux_kontext_calibration(flow: Flow) -> None:
    """Measures FLUX.1-Kontext-dev: computes every step, and writes a preset."""
    _kontext(flow, lambda model: flow.add("MagCacheCalibration", model=model, model_type="flux_kontext"))


def _chroma(flow: Flow, patch: Callable[[Node], Node], steps: int) -> None:
    model = patch(flow.unet("Chroma1-HD.safetensors"))
    shifted = flow.add("ModelSamplingAuraFlow", model=model, shift=1.0)
    loaded = flow.clip("t5xxl_fp16.safetensors", kind="chroma")
    clip = flow.add("T5TokenizerOptions", clip=loaded, min_padding=0, min_length=3)
    latent = flow.add("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    sides = flow.prompt(clip, PROMPT), flow.prompt(clip, AVOID, "Negative prompt")
    done = flow.sample(shifted, *sides, latent, steps=steps, cfg=4.0, scheduler="beta")
    flow.save(done, flow.vae("ae.safetensors"))


def chroma(flow: Flow) -> None:
    """Chroma, text to image."""
    _chroma(flow, lambda model: flow.magcache(model, "chroma"), 26)


def chroma_calibration(flow: Flow) -> None:
    """Measures Chroma: computes every step, and writes a preset."""
    _chroma(flow, lambda model: flow.add("MagCacheCalibration", model=model, model_type="chroma"), 40)


def qwen_image(flow: Flow) -> None:
    """Qwen-Image, text to image."""
    model = flow.magcache(flow.unet("qwen_image_fp8_e4m3fn.safetensors"), "qwen_image")
    shifted = flow.add("ModelSamplingAuraFlow", model=model, shift=3.1)
    clip = flow.clip("qwen_2.5_vl_7b_fp8_scaled.safetensors", kind="qwen_image")
    latent = flow.add("EmptySD3LatentImage", width=1328, height=1328, batch_size=1)
    sides = flow.prompt(clip, PROMPT), flow.prompt(clip, AVOID, "Negative prompt")
    flow.save(flow.sample(shifted, *sides, latent, cfg=2.5), flow.vae("qwen_image_vae.safetensors"))


def _custom(flow: Flow, model: Any, guider: Any, latent: Any, steps: int) -> Node:
    return flow.add(
        "SamplerCustomAdvanced",
        noise=flow.add("RandomNoise", noise_seed=1),
        guider=guider,
        sampler=flow.add("KSamplerSelect", sampler_name="euler"),
        sigmas=flow.add("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0),
        latent_image=latent,
    )


def hunyuanvideo(flow: Flow) -> None:
    """HunyuanVideo, text to video."""
    loaded = flow.unet("hunyuan_video_t2v_720p_bf16.safetensors")
    model = flow.add("ModelSamplingSD3", model=flow.magcache(loaded, "hunyuan_video"), shift=7.0)
    clip = flow.clip("clip_l.safetensors", "llava_llama3_fp8_scaled.safetensors", kind="hunyuan_video")
    guided = flow.add("FluxGuidance", conditioning=flow.prompt(clip, MOTION), guidance=6.0)
    guider = flow.add("BasicGuider", model=model, conditioning=guided)
    latent = flow.add("EmptyHunyuanLatentVideo", width=848, height=480, length=73, batch_size=1)
    done = _custom(flow, model, guider, latent, 30)
    flow.film(done, flow.vae("hunyuan_video_vae_bf16.safetensors"), 24.0)


def hunyuanvideo_1_5(flow: Flow) -> None:
    """HunyuanVideo 1.5, text to video."""
    loaded = flow.unet("hunyuanvideo1.5_720p_t2v_fp16.safetensors")
    model = flow.add("ModelSamplingSD3", model=flow.magcache(loaded, "hunyuan_video1.5"), shift=7.0)
    files = "qwen_2.5_vl_7b_fp8_scaled.safetensors", "byt5_small_glyphxl_fp16.safetensors"
    clip = flow.clip(*files, kind="hunyuan_video_15")
    sides = dict(positive=flow.prompt(clip, MOTION), negative=flow.prompt(clip, "", "Negative prompt"))
    guider = flow.add("CFGGuider", model=model, **sides, cfg=6.0)
    latent = flow.add("EmptyHunyuanVideo15Latent", width=848, height=480, length=121, batch_size=1)
    done = _custom(flow, model, guider, latent, 20)
    flow.film(done, flow.vae("hunyuanvideo15_vae_fp16.safetensors"), 24.0)


def _wan(flow: Flow) -> tuple[Node, Node, Node]:
    clip = flow.clip("umt5_xxl_fp8_e4m3fn_scaled.safetensors", kind="wan")
    return flow.prompt(clip, MOTION), flow.prompt(clip, AVOID, "Negative prompt"), flow.vae("wan_2.1_vae.safetensors")


def _wan2_1_t2v(flow: Flow, patch: Callable[[Node], Node]) -> None:
    model = patch(flow.unet("wan2.1_t2v_1.3B_fp16.safetensors"))
    shifted = flow.add("ModelSamplingSD3", model=model, shift=8.0)
    positive, negative, vae = _wan(flow)
    latent = flow.add("EmptyHunyuanLatentVideo", width=832, height=480, length=33, batch_size=1)
    done = flow.sample(shifted, positive, negative, latent, steps=30, cfg=6.0, sampler_name="uni_pc")
    flow.film(done, vae, 16.0)


def wan2_1_t2v(flow: Flow) -> None:
    """Wan2.1 1.3B, text to video."""
    _wan2_1_t2v(flow, lambda model: flow.magcache(model, "wan2.1_t2v_1.3B"))


def wan2_1_t2v_speed_up(flow: Flow) -> None:
    """Wan2.1 1.3B, text to video, with the node Speed up: half of the steps compute, and runs teach later ones."""
    _wan2_1_t2v(flow, flow.speed_up)


def wan2_1_i2v(flow: Flow) -> None:
    """Wan2.1 14B at 480p, image to video."""
    model = flow.magcache(flow.unet("wan2.1_i2v_480p_14B_fp16.safetensors"), "wan2.1_i2v_480p_14B")
    shifted = flow.add("ModelSamplingSD3", model=model, shift=8.0)
    positive, negative, vae = _wan(flow)
    image = flow.add("LoadImage", image="example.png")
    vision = flow.add("CLIPVisionLoader", clip_name="clip_vision_h.safetensors")
    seen = flow.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none")
    size = dict(width=512, height=512, length=33, batch_size=1)
    start = flow.add(
        "WanImageToVideo", positive=positive, negative=negative, vae=vae, **size, clip_vision_output=seen, start_image=image
    )
    done = flow.sample(shifted, start[0], start[1], start[2], cfg=6.0, sampler_name="uni_pc")
    flow.film(done, vae, 16.0)


def wan2_1_vace(flow: Flow) -> None:
    """Wan2.1 VACE 1.3B, video from a reference image."""
    model = flow.magcache(flow.unet("wan2.1_vace_1.3B_fp16.safetensors"), "wan2.1_vace_1.3B")
    shifted = flow.add("ModelSamplingSD3", model=model, shift=8.0)
    positive, negative, vae = _wan(flow)
    image = flow.add("LoadImage", image="example.png")
    size = dict(width=832, height=480, length=49, batch_size=1, strength=1.0)
    start = flow.add("WanVaceToVideo", positive=positive, negative=negative, vae=vae, **size, reference_image=image)
    done = flow.sample(shifted, start[0], start[1], start[2], cfg=6.0, sampler_name="uni_pc")
    flow.film(flow.add("TrimVideoLatent", samples=done, trim_amount=start[3]), vae, 16.0)


def _two_experts(flow: Flow, files: tuple[str, str], model_type: str, positive: Any, negative: Any, latent: Any) -> Node:
    """High noise first, low noise second, in two stages of one run."""
    stages = ("enable", 0, 10, "enable"), ("disable", 10, 10_000, "disable")
    for file, which, (noise, start, end, leftover) in zip(files, ("High noise", "Low noise"), stages, strict=True):
        model = flow.magcache(flow.unet(file, which), model_type, f"MagCache, {which.lower()}")
        latent = flow.add(
            "KSamplerAdvanced", which,
            model=flow.add("ModelSamplingSD3", model=model, shift=8.0), positive=positive, negative=negative,
            latent_image=latent, add_noise=noise, noise_seed=1, steps=20, cfg=3.5, sampler_name="euler", scheduler="simple",
            start_at_step=start, end_at_step=end, return_with_leftover_noise=leftover,
        )  # fmt: skip
    return latent


def wan2_2_t2v(flow: Flow) -> None:
    """Wan2.2 A14B with its two experts, text to video."""
    positive, negative, vae = _wan(flow)
    latent = flow.add("EmptyHunyuanLatentVideo", width=640, height=640, length=81, batch_size=1)
    files = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
    flow.film(_two_experts(flow, files, "wan2.2_t2v_14B", positive, negative, latent), vae, 16.0)


def wan2_2_i2v(flow: Flow) -> None:
    """Wan2.2 A14B with its two experts, image to video."""
    positive, negative, vae = _wan(flow)
    image = flow.add("LoadImage", image="example.png")
    size = dict(width=640, height=640, length=81, batch_size=1)
    start = flow.add("WanImageToVideo", positive=positive, negative=negative, vae=vae, **size, start_image=image)
    files = "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"
    flow.film(_two_experts(flow, files, "wan2.2_i2v_14B", start[0], start[1], start[2]), vae, 16.0)


def wan2_2_ti2v(flow: Flow) -> None:
    """Wan2.2 5B, text or image to video."""
    model = flow.magcache(flow.unet("wan2.2_ti2v_5B_fp16.safetensors"), "wan2.2_ti2v_5B")
    shifted = flow.add("ModelSamplingSD3", model=model, shift=8.0)
    clip = flow.clip("umt5_xxl_fp8_e4m3fn_scaled.safetensors", kind="wan")
    positive, negative = flow.prompt(clip, MOTION), flow.prompt(clip, AVOID, "Negative prompt")
    vae = flow.vae("wan2.2_vae.safetensors")
    image = flow.add("LoadImage", image="example.png")
    size = dict(width=1280, height=704, length=121, batch_size=1)
    latent = flow.add("Wan22ImageToVideoLatent", vae=vae, **size, start_image=image)
    done = flow.sample(shifted, positive, negative, latent, cfg=5.0, sampler_name="uni_pc")
    flow.film(done, vae, 24.0)


WORKFLOWS: tuple[Callable[[Flow], None], ...] = (
    flux,
    flux_speed_up,
    flux_kontext,
    chroma,
    qwen_image,
    hunyuanvideo,
    hunyuanvideo_1_5,
    wan2_1_t2v,
    wan2_1_t2v_speed_up,
    wan2_1_i2v,
    wan2_1_vace,
    wan2_2_t2v,
    wan2_2_i2v,
    wan2_2_ti2v,
    flux_kontext_calibration,
    chroma_calibration,
)


def described(workflow: Callable[[Flow], None]) -> Flow:
    """A workflow's nodes."""
    flow = Flow((workflow.__doc__ or "").strip())
    workflow(flow)
    return flow
