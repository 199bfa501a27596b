"""Small figures for the model classes of ComfyUI 0.3.75 and before; :mod:`host.newer` has those that came later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

import torch


@frozen
class Tiny:
    """One entry of ``comfy.supported_models``, small."""

    config: Mapping[str, Any]
    """Figures of its diffusion model; those of the entry itself are added."""
    latent: tuple[int, ...]
    """Shape of one latent, without the batch."""
    text: tuple[int, ...] = (7, 32)
    """Shape of one prompt's embedding, without the batch."""
    pooled: int = 32
    extra: Mapping[str, tuple[int, ...]] = field(factory=dict)
    """More tensors of a conditioning, by name: their shapes, without the batch."""
    second: tuple[int, ...] = ()
    """Shape of a second latent that is sampled with the first one (audio, a camera)."""
    fixed: Mapping[str, Any] = field(factory=dict)
    """More of a conditioning that is as it is."""
    whole: bool = False
    """A U-Net: skipped as a whole."""
    frames: int = 1
    """Latents that belong together (video U-Nets)."""


def _unet(context: int = 32, adm: int | None = None, **more: Any) -> dict[str, Any]:
    config = {
        "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False, "out_channels": 4,
        "in_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "context_dim": context,
        "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
        "use_linear_in_transformer": True, "num_heads": 2, "num_head_channels": -1, "adm_in_channels": adm,
        "use_temporal_attention": False,
    }  # fmt: skip
    if adm is not None:
        config["num_classes"] = "sequential"
    return config | more


FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 64, "mlp_ratio": 2.0,
    "num_heads": 4, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "txt_ids_dims": [],
}  # fmt: skip
_CHROMA = FLUX | {
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 2, "vec_in_dim": None,
}  # fmt: skip
_HUNYUAN = (
    {k: v for k, v in FLUX.items() if k != "txt_ids_dims"}
    | {"meanflow_sum": False}
    | {"patch_size": [1, 2, 2], "guidance_embed": True, "theta": 256}
)
_HUNYUAN_NEW = {"byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None}
WAN = {
    "dim": 64, "ffn_dim": 128, "num_heads": 4, "num_layers": 4, "text_dim": 32, "text_len": 16, "freq_dim": 32,
    "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16,
}  # fmt: skip
COSMOS = {
    "max_img_h": 32, "max_img_w": 32, "max_frames": 8, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 3, "num_heads": 2, "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16, "extra_per_block_abs_pos_emb": False,
}  # fmt: skip
_COSMOS1 = COSMOS | {
    "block_x_format": "THWBD", "affline_emb_norm": True, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable", "crossattn_emb_channels": 32,
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": 32, "n_layers": 3, "n_refiner_layers": 1, "qk_norm": True,
    "n_heads": 4, "n_kv_heads": 4, "axes_dims": [4, 6, 6], "axes_lens": [32, 64, 64], "multiple_of": 32,
}  # fmt: skip
_HYDIT = {
    "input_size": None, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0,
    "text_states_dim": 32, "text_states_dim_t5": 32, "text_len": 7, "text_len_t5": 9,
}  # fmt: skip
_HYDIT_TEXT = {"conditioning_mt5xl": (9, 32), "attention_mask": (7,), "attention_mask_mt5xl": (9,)}
_H3D = {"in_channels": 64, "context_in_dim": 32, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 2,
        "depth_single_blocks": 2, "qkv_bias": True}  # fmt: skip
_PIXART = {
    "input_size": 16,
    "hidden_size": 64,
    "depth": 3,
    "num_heads": 4,
    "caption_channels": 32,
    "model_max_length": 8,
    "pe_interpolation": 1,
}
_SD_TEXT = (77, 32)
IMAGE, VIDEO, _MESH = (16, 8, 8), (16, 3, 8, 8), (64, 12)

_TIME = {
    "use_temporal_attention": True, "use_temporal_resblock": True, "video_kernel_size": [3, 1, 1], "merge_factor": 0.0,
    "merge_strategy": "learned_with_images", "extra_ff_mix_layer": True, "use_spatial_context": True,
}  # fmt: skip
_WAN_I2V = {"in_dim": 36, "model_type": "i2v"}
TINY: dict[str, Tiny] = {
    "SD15": Tiny(_unet(), (4, 8, 8), whole=True),
    "SD20": Tiny(_unet(), (4, 8, 8), whole=True),
    "SD21UnclipL": Tiny(_unet(adm=1536), (4, 8, 8), whole=True),
    "SD21UnclipH": Tiny(_unet(adm=2048), (4, 8, 8), whole=True),
    "LotusD": Tiny(_unet(adm=4), (4, 8, 8), whole=True),
    "Stable_Zero123": Tiny(_unet(768, in_channels=8), (4, 8, 8), text=(7, 768), whole=True),
    "SD15_instructpix2pix": Tiny(_unet(in_channels=8), (4, 8, 8), whole=True),
    "SDXL_instructpix2pix": Tiny(_unet(adm=1568, in_channels=8), (4, 8, 8), whole=True),
    "SD_X4Upscaler": Tiny(
        _unet(in_channels=7, num_classes=1000, channel_mult=[1, 1, 1, 1], num_res_blocks=[1] * 4, transformer_depth=[1] * 4,
              transformer_depth_output=[1] * 8),
        (4, 16, 16), whole=True,
    ),
    "SDXL": Tiny(_unet(adm=32 + 6 * 256), (4, 8, 8), whole=True),
    "SDXLRefiner": Tiny(_unet(adm=32 + 5 * 256), (4, 8, 8), whole=True),
    "SSD1B": Tiny(_unet(adm=32 + 6 * 256), (4, 8, 8), whole=True),
    "KOALA_700M": Tiny(_unet(adm=32 + 6 * 256), (4, 8, 8), whole=True),
    "KOALA_1B": Tiny(_unet(adm=32 + 6 * 256), (4, 8, 8), whole=True),
    "Segmind_Vega": Tiny(_unet(adm=32 + 6 * 256), (4, 8, 8), whole=True),
    "SVD_img2vid": Tiny(_unet(adm=3 * 256, in_channels=8, **_TIME), (4, 8, 8), whole=True, frames=2),
    "SV3D_u": Tiny(_unet(adm=256, in_channels=8, **_TIME), (4, 8, 8), whole=True, frames=2),
    "SV3D_p": Tiny(_unet(adm=1280, in_channels=8, **_TIME), (4, 8, 8), whole=True, frames=2),
    "Stable_Cascade_C": Tiny(
        {"c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[1, 1], [1, 1]], "c_clip_text": 32,
         "c_clip_text_pooled": 32, "block_repeat": [[1, 1], [1, 1]]},
        (16, 8, 8), whole=True,
    ),
    "Stable_Cascade_B": Tiny(
        {"c_cond": 64, "c_hidden": [32, 64], "nhead": [-1, 2], "blocks": [[1, 1], [1, 1]], "block_repeat": [[1, 1], [1, 1]],
         "level_config": ["CT", "CTA"], "c_clip": 32, "dropout": [0, 0]},
        (4, 16, 16), whole=True,
    ),
    "SD3": Tiny(
        {"input_size": None, "patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": 3, "adm_in_channels": 32,
         "num_patches": 256, "pos_embed_max_size": 16, "context_size": 32, "qk_norm": "rms",
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 192}}},
        IMAGE,
    ),
    "StableAudio": Tiny({"embed_dim": 768, "cond_token_dim": 768, "depth": 3, "num_heads": 12}, (64, 24), text=(5, 768)),
    "AuraFlow": Tiny(
        {"dim": 64, "n_layers": 4, "n_double_layers": 2, "n_heads": 4, "global_conddim": 64, "cond_seq_dim": 32, "max_seq": 64},
        (4, 8, 8),
    ),
    "PixArtAlpha": Tiny(_PIXART | {"hidden_size": 48, "micro_condition": True}, (4, 64, 64)),
    "PixArtSigma": Tiny(_PIXART | {"micro_condition": False}, (4, 64, 64)),
    "HunyuanDiT": Tiny(_HYDIT, (4, 8, 8), extra=_HYDIT_TEXT),
    "HunyuanDiT1": Tiny(_HYDIT | {"size_cond": True, "use_style_cond": True}, (4, 8, 8), extra=_HYDIT_TEXT),
    "FluxInpaint": Tiny(FLUX | {"guidance_embed": True}, IMAGE),
    "Flux": Tiny(FLUX | {"guidance_embed": True}, IMAGE),
    "FluxSchnell": Tiny(FLUX | {"guidance_embed": False}, IMAGE),
    "Flux2": Tiny(
        FLUX | {
            "axes_dim": [4, 4, 4, 4], "in_channels": 128, "out_channels": 128, "global_modulation": True, "vec_in_dim": None,
            "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "patch_size": 1,
            "guidance_embed": True,
        },
        (128, 4, 4),
    ),
    "Chroma": Tiny(_CHROMA, IMAGE),
    "ChromaRadiance": Tiny(
        _CHROMA | {
            "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2,
            "nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32,
            "use_x0": False, "use_sequential_txt_ids": False,
        },
        (3, 64, 64),
    ),
    "GenmoMochi": Tiny(
        {"depth": 3, "patch_size": 2, "num_heads": 4, "hidden_size_x": 64, "hidden_size_y": 32, "mlp_ratio_x": 192.0,
         "mlp_ratio_y": 192.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
         "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True,
         "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 32, "t5_token_length": 8,
         "rope_theta": 10000.0},
        (12, 3, 8, 8), text=(8, 32), extra={"attention_mask": (8,)},
    ),
    "LTXV": Tiny(
        {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "cross_attention_dim": 64,
         "caption_channels": 32},
        (128, 3, 4, 4), extra={"attention_mask": (7,)},
    ),
    "HunyuanVideo": Tiny(_HUNYUAN | _HUNYUAN_NEW, VIDEO),
    "HunyuanVideoI2V": Tiny(_HUNYUAN | _HUNYUAN_NEW, VIDEO),
    "HunyuanVideoSkyreelsI2V": Tiny(_HUNYUAN | _HUNYUAN_NEW, VIDEO),
    "HunyuanVideo15": Tiny(
        _HUNYUAN | _HUNYUAN_NEW | {"vec_in_dim": None, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1],
                                   "guidance_embed": False, "use_cond_type_embedding": True},
        (32, 3, 4, 4),
    ),
    "HunyuanVideo15_SR_Distilled": Tiny(
        _HUNYUAN | _HUNYUAN_NEW | {"vec_in_dim": None, "out_channels": 32, "patch_size": [1, 1, 1], "guidance_embed": False,
                                   "use_cond_type_embedding": True, "meanflow": True},
        (32, 3, 4, 4),
    ),
    "HunyuanImage21": Tiny(
        _HUNYUAN | _HUNYUAN_NEW | {"in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [8, 8],
                                   "meanflow": True},
        (64, 6, 6),
    ),
    "HunyuanImage21Refiner": Tiny(_HUNYUAN | _HUNYUAN_NEW | {"in_channels": 128, "out_channels": 64}, (64, 2, 6, 6)),
    "CosmosT2V": Tiny(_COSMOS1, VIDEO),
    "CosmosI2V": Tiny(_COSMOS1, VIDEO),
    "CosmosT2IPredict2": Tiny(COSMOS, VIDEO),
    "CosmosI2VPredict2": Tiny(COSMOS, VIDEO),
    "ZImage": Tiny(
        LUMINA | {"dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True, "time_scale": 1000.0,
                   "pad_tokens_multiple": 4},
        IMAGE, extra={"attention_mask": (7,)},
    ),
    "Lumina2": Tiny(LUMINA, IMAGE, extra={"attention_mask": (7,)}),
    "WAN21_T2V": Tiny(WAN, VIDEO),
    "WAN22_T2V": Tiny(WAN | {"in_dim": 48}, (48, 3, 8, 8)),
    "WAN21_I2V": Tiny(WAN | _WAN_I2V, VIDEO),
    "WAN21_FunControl2V": Tiny(WAN, VIDEO),
    "WAN21_Vace": Tiny(WAN | {"vace_layers": 2, "vace_in_dim": 96}, VIDEO),
    "WAN21_Camera": Tiny(WAN, VIDEO),
    "WAN22_Camera": Tiny(WAN, VIDEO),
    "WAN22_S2V": Tiny(WAN | {"dim": 128}, VIDEO),
    "WAN21_HuMo": Tiny(WAN | _WAN_I2V, VIDEO),
    "WAN22_Animate": Tiny(WAN | {"in_dim": 36, "num_layers": 6}, VIDEO),
    "Hunyuan3Dv2mini": Tiny(_H3D, _MESH, text=(9, 32)),
    "Hunyuan3Dv2": Tiny(_H3D, _MESH, text=(9, 32)),
    "Hunyuan3Dv2_1": Tiny(
        {"in_channels": 64, "context_dim": 32, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 4, "depth": 5,
         "qkv_bias": False, "guidance_cond_proj_dim": None, "num_moe_layers": 2},
        _MESH, text=(9, 32), whole=True,
    ),
    "HiDream": Tiny(
        {"attention_head_dim": 16, "axes_dims_rope": [4, 6, 6], "caption_channels": [32, 32], "max_resolution": [16, 16],
         "in_channels": 16, "llama_layers": [0, 1, 2, 3, 3], "num_attention_heads": 4, "num_routed_experts": 2,
         "num_activated_experts": 1, "num_layers": 2, "num_single_layers": 2, "out_channels": 16, "patch_size": 2,
         "text_emb_dim": 32},
        IMAGE, extra={"conditioning_llama3": (4, 7, 32)},
    ),
    "ACEStep": Tiny(
        {"attention_head_dim": 16, "in_channels": 8, "inner_dim": 64, "max_height": 16, "max_position": 64, "max_width": 64,
         "mlp_ratio": 2.0, "num_attention_heads": 4, "num_layers": 3, "out_channels": 8, "patch_size": [16, 1],
         "rope_theta": 10000.0, "speaker_embedding_dim": 512, "text_embedding_dim": 32, "ssl_encoder_depths": [2, 2],
         "ssl_latent_dims": [16, 16], "ssl_names": ["mert", "m-hubert"], "lyric_encoder_vocab_size": 16,
         "lyric_hidden_size": 1024},
        (8, 16, 8), extra={"conditioning_lyrics": (5,)},
    ),
    "Omnigen2": Tiny(
        {"axes_dim_rope": [4, 6, 6], "axes_lens": [64, 64, 64], "hidden_size": 64, "in_channels": 16, "multiple_of": 32,
         "num_attention_heads": 4, "num_kv_heads": 2, "num_layers": 3, "num_refiner_layers": 1, "patch_size": 2,
         "text_feat_dim": 32, "timestep_scale": 1000.0},
        IMAGE, extra={"attention_mask": (7,)},
    ),
    "QwenImage": Tiny(
        {"in_channels": 64, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 32,
         "axes_dims_rope": (4, 6, 6)},
        (16, 1, 8, 8),
    ),
}  # fmt: skip
