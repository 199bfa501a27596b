"""Every transformer class of the engine, tiny: how it is built, and called as its pipelines call it.

Classes of which diffusers has one too take that one's tiny config and inputs, from the tests of diffusers.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from attrs import Factory, frozen
from vllm.config import set_current_vllm_config
from vllm_omni.diffusion.data import TransformerConfig
from zoo import CASES
from zoo._case import Draw

import torch

Kwargs = dict[str, Any]


def _as_diffusers(model: Model) -> Kwargs:
    return CASES[model.like].inputs(Draw())


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@frozen
class Model:
    """One class."""

    path: str
    """``module:Class`` below the engine's models."""
    like: str = Factory(lambda self: self.path.partition(":")[2], takes_self=True)
    """The class of diffusers whose config and inputs it takes; empty: it has its own here."""
    config: Mapping[str, Any] = Factory(dict)
    """Beside the config of diffusers' class, or in place of it."""
    inputs: Callable[[], Kwargs] = dict
    """Beside the inputs of diffusers' class, or in place of them."""
    dtype: torch.dtype = torch.float32
    scheduler: bool = True
    """Whether its pipelines step a scheduler that they show; others make one inside their loop."""
    without: tuple[str, ...] = ()
    """What its forward does not take of these."""

    @property
    def name(self) -> str:
        """Name of the class; of two of one name, with the folder of the second."""
        module, _, name = self.path.partition(":")
        return name if module != "flux2_klein.flux2_klein_transformer" else f"{name} (klein)"

    @property
    def kind(self) -> type[torch.nn.Module]:
        module, _, name = self.path.partition(":")
        found: type[torch.nn.Module] = getattr(importlib.import_module(f"vllm_omni.diffusion.models.{module}"), name)
        return found

    def make(self, runner: Any) -> torch.nn.Module:
        """A fresh one with random weights, none of them zero, as the engine's loader leaves it."""
        own = {name: value() if callable(value) else value for name, value in self.config.items()}
        given = {**(dict(CASES[self.like].make().config) if self.like else {}), **own}
        takes = {name for kind in self.kind.__mro__ for name in inspect.signature(kind.__init__).parameters}
        arguments = {name: value for name, value in given.items() if name in takes}
        if "od_config" in takes:
            arguments["od_config"] = copy.copy(runner.od_config)
            arguments["od_config"].tf_model_config = TransformerConfig(params=given)
        with set_current_vllm_config(runner.vllm_config):
            made = self.kind(**arguments).eval().requires_grad_(False).to(self.dtype)
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            parameter.data.normal_(std=0.08, generator=generator)
        for module in made.modules():
            method = getattr(module, "quant_method", None)
            if hasattr(method, "process_weights_after_loading"):
                method.process_weights_after_loading(module)
        return made

    def call(self) -> Kwargs:
        """The arguments of a call."""
        given = {**(_as_diffusers(self) if self.like else {}), **self.inputs()}
        return {name: _cast(value, self.dtype) for name, value in given.items() if name not in self.without}

    def timestep(self) -> str:
        """The argument that it is given the timestep by."""
        return next(name for name in ("timestep", "timesteps", "time", "t") if name in self.call())


def _vace() -> Kwargs:
    draw = Draw()
    return {"vace_context": draw.fixed(8, 2, 8, 8)}


def _joint_text(model: str) -> Callable[[], Kwargs]:
    """Inputs of the models after Lumina 2: a picture, a text with its mask, and tables for their places."""

    def inputs() -> Kwargs:
        module = importlib.import_module(f"vllm_omni.diffusion.models.{model}")
        made, draw = getattr(module, "OmniGen2RotaryPosEmbed", None), Draw()
        tables = module.RotaryPosEmbedReal.get_freqs_real if made is None else made.get_freqs_cis
        return {
            "hidden_states": draw.noise(4, 8, 8),
            "timestep": draw.time(1),
            "text_hidden_states": draw.text(5, 8),
            "text_attention_mask": torch.ones(1, 5, dtype=torch.long),
            "freqs_cis": tables((4, 2, 2), (32, 16, 16), theta=10000),
        }

    return inputs


_JOINT_TEXT = {
    "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_layers": 3, "num_refiner_layers": 2, "num_attention_heads": 2,
    "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 16, 16), "text_feat_dim": 8,
}  # fmt: skip


def _lingbot() -> Kwargs:
    draw = Draw()
    return {
        "hidden_states": draw.noise(4, 2, 8, 8), "timestep": draw.time(), "encoder_hidden_states": draw.text(5, 8),
    }  # fmt: skip


def _avatar() -> Kwargs:
    """LongCat's: 2 latent frames, 5 frames of sound."""
    draw = Draw()
    return {
        "hidden_states": draw.noise(4, 2, 8, 8), "timestep": draw.time(), "encoder_hidden_states": draw.text(1, 5, 8),
        "audio_embs": draw.fixed(5, 5, 2, 8),
    }  # fmt: skip


def _speech() -> Kwargs:
    """Wan's of speech to video: 2 latent frames, a picture for reference, two frames before, a pose, sound."""
    draw = Draw()
    return {
        "hidden_states": draw.noise(4, 2, 8, 8), "timestep": draw.time(), "encoder_hidden_states": draw.text(5, 8),
        "ref_latents": draw.fixed(4, 1, 8, 8), "motion_latents": draw.fixed(4, 2, 8, 8), "cond_states": draw.fixed(4, 2, 8, 8),
        "encoder_hidden_states_audio": {"audio_emb": draw.fixed(2, 5, 32)}, "drop_motion_frames": True,
    }  # fmt: skip


def _sana_wm_config() -> Any:
    from vllm_omni.diffusion.models.sana_wm.config import SanaWmConfig

    return SanaWmConfig(num_blocks=3, hidden_size=32, linear_head_dim=16, chunk_plucker_post_attn_blocks=3)


def _sana_wm() -> Kwargs:
    draw = Draw()
    return {
        "hidden_states": draw.noise(4, 2, 8, 8), "timestep": draw.time(), "encoder_hidden_states": draw.text(5, 8),
    }  # fmt: skip


def _auk() -> Kwargs:
    draw = Draw()
    return {"x": draw.noise(8, 4), "text": draw.text(5, 8), "time": draw.time(1)}


def _boogu() -> Kwargs:
    from vllm_omni.diffusion.models.boogu_image import boogu_image_transformer as home

    draw = Draw()
    rope = home.BooguImageDoubleStreamRotaryPosEmbed
    return {
        "hidden_states": draw.noise(4, 8, 8), "timestep": draw.time(1), "instruction_hidden_states": draw.text(5, 8),
        "instruction_attention_mask": torch.ones(1, 5, dtype=torch.long),
        "freqs_real": rope.get_freqs_real((4, 2, 2), (32, 16, 16), theta=10000),
    }  # fmt: skip


MODELS = [
    Model(
        "longcat_video.longcat_video_avatar_transformer:LongCatVideoAvatarTransformer3DModel",
        "",
        {
            "in_channels": 4, "out_channels": 4, "hidden_size": 32, "depth": 3, "num_heads": 2, "caption_channels": 8,
            "adaln_tembed_dim": 16, "frequency_embedding_size": 16, "audio_window": 5, "audio_block": 2, "audio_channel": 8,
            "intermediate_dim": 16, "output_dim": 16, "context_tokens": 2,
        },
        _avatar,
    ),
    Model(
        "wan2_2.wan2_2_s2v_transformer:WanS2VTransformer3DModel",
        "",
        {
            "cond_dim": 4, "audio_dim": 8, "num_audio_token": 4, "audio_inject_layers": [0, 2], "enable_motioner": False,
            "enable_framepack": False, "text_len": 5, "in_dim": 4, "dim": 32, "ffn_dim": 32, "freq_dim": 16, "text_dim": 8,
            "out_dim": 4, "num_heads": 2, "num_layers": 3,
        },
        _speech,
    ),
    Model(
        "sana_wm.sana_wm_transformer:SanaWmTransformer3DModel", "",
        {"config": _sana_wm_config, "latent_channels": 4, "prompt_channels": 8}, _sana_wm, scheduler=False,
    ),
    Model(
        "auk.auk_transformer:AuKTransformer",
        "",
        {
            "dim": 32, "heads": 2, "dim_head": 16, "ff_mult": 1.0, "latent_dim": 4, "text_hidden_dim": 8, "num_layers": 2,
            "num_single_layers": 2,
        },
        _auk,
        scheduler=False,
    ),
    Model(
        "boogu_image.boogu_image_transformer:BooguImageTransformer2DModel",
        "",
        {
            **{k: v for k, v in _JOINT_TEXT.items() if k != "text_feat_dim"}, "num_double_stream_layers": 2,
            "instruction_feature_configs": {"instruction_feat_dim": 8},
        },
        _boogu,
    ),
    Model("ernie_image.ernie_image_transformer:ErnieImageTransformer2DModel"),
    Model("flux.flux_transformer:FluxTransformer2DModel", config={"guidance_embeds": False}),
    Model("flux.flux_transformer:FluxKontextTransformer2DModel", "FluxTransformer2DModel", {"guidance_embeds": False}),
    Model("flux2.flux2_transformer:Flux2Transformer2DModel"),
    Model("flux2_klein.flux2_klein_transformer:Flux2Transformer2DModel"),
    Model("glm_image.glm_image_transformer:GlmImageTransformer2DModel"),
    Model("helios.helios_transformer:HeliosTransformer3DModel"),
    Model("hidream_image.hidream_image_transformer:HiDreamImageTransformer2DModel", dtype=torch.bfloat16),
    Model("hunyuan_video.hunyuan_video_15_transformer:HunyuanVideo15Transformer3DModel"),
    Model("krea2.krea2_transformer:Krea2Transformer2DModel"),
    Model(
        "lingbot_video.lingbot_video_transformer:LingBotVideoTransformer3DModel",
        "",
        {
            "in_channels": 4, "out_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "depth": 3, "text_dim": 8,
            "intermediate_size": 32, "freq_dim": 16, "axes_dims": (4, 6, 6), "axes_lens": (64, 16, 16),
        },
        _lingbot,
    ),
    Model("longcat_image.longcat_image_transformer:LongCatImageTransformer2DModel"),
    Model("ltx2.ltx2_transformer:LTX2VideoTransformer3DModel", without=("use_cross_timestep",)),
    Model(
        "mammoth_moda2.mammothmoda2_dit_model:Transformer2DModel", "", _JOINT_TEXT,
        _joint_text("mammoth_moda2.mammothmoda2_dit_model"), scheduler=False,
    ),
    Model(
        "omnigen2.omnigen2_transformer:OmniGen2Transformer2DModel", "", _JOINT_TEXT,
        _joint_text("omnigen2.omnigen2_transformer"),
    ),
    Model("ovis_image.ovis_image_transformer:OvisImageTransformer2DModel"),
    Model("qwen_image.qwen_image_transformer:QwenImageTransformer2DModel", inputs=lambda: {"txt_seq_lens": [5]}),
    Model(
        "sana_video.transformer_sana_video:SanaVideoTransformer3DModel",
        inputs=lambda: {"encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool)},
    ),
    Model("sd3.sd3_transformer:SD3Transformer2DModel"),
    Model("stable_audio.stable_audio_transformer:StableAudioDiTModel"),
    Model("wan2_2.wan2_2_transformer:WanTransformer3DModel"),
    Model(
        "wan2_2.wan2_2_vace_transformer:WanVACETransformer3DModel", inputs=_vace,
        without=("control_hidden_states", "control_hidden_states_scale"),
    ),
    Model("z_image.z_image_transformer:ZImageTransformer2DModel"),
    Model("ming_image.transformer:MingImageTransformer2DModel", "ZImageTransformer2DModel"),
    Model("ming_flash_omni.ming_zimage_transformer:MingZImageTransformer2DModel", "ZImageTransformer2DModel"),
]  # fmt: skip
LANGUAGE_MODELS = (
    "bagel.bagel_transformer:Qwen2MoTModel",
    "hunyuan_image3.hunyuan_image3_transformer:HunyuanImage3Model",
    "sensenova_u1.sensenova_u1_transformer:SenseNovaU1Model",
)
UNTOLD = (
    "dreamzero.causal_wan_model:CausalWanModel",
    "magi2.modeling_magi2:Magi2PreviewTransformer",
    "minimax_h3.minimax_h3_transformer:MiniMaxH3DiTModel",
)
"""Their forward names no timestep."""
ZOO = {model.name: model for model in MODELS}
