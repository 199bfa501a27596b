"""The model classes that ComfyUI has got since 0.3.75, tiny."""

from __future__ import annotations

from typing import Any

import torch
from host.figures import COSMOS, FLUX, IMAGE, LUMINA, VIDEO, WAN, Tiny

_KANDINSKY = {
    "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 32, "in_text_dim2": 32, "time_dim": 32, "model_dim": 64,
    "ff_dim": 128, "visual_embed_dim": 132, "patch_size": (1, 2, 2), "num_text_blocks": 1, "num_visual_blocks": 3,
    "axes_dims": (4, 6, 6),
}  # fmt: skip
_COGVIDEO = {
    "num_attention_heads": 4, "attention_head_dim": 16, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 3,
    "sample_width": 8, "sample_height": 8, "sample_frames": 9, "max_text_seq_length": 7,
    "use_rotary_positional_embeddings": True,
}  # fmt: skip
_PIXELDIT = {
    "in_channels": 3, "num_groups": 4, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 64,
    "pixel_num_groups": 4, "patch_depth": 3, "pixel_depth": 2, "patch_size": 16, "txt_embed_dim": 32, "txt_max_length": 8,
}  # fmt: skip
_WAN_REF: dict[str, Any] = WAN | {"in_dim": 20}
_VOXELS = {
    "trellis2_generation_mode": "shape_generation", "trellis2_coord_counts": torch.tensor([12]),
    "trellis2_coords": torch.tensor([[0, i, i // 2, i // 3] for i in range(12)]),
}  # fmt: skip

TINY: dict[str, Tiny] = {
    "LongCatImage": Tiny(FLUX | {"guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, IMAGE),
    "LTXAV": Tiny(
        {"num_layers": 3, "attention_head_dim": 16, "audio_attention_head_dim": 8, "num_attention_heads": 4,
         "audio_num_attention_heads": 4, "cross_attention_dim": 64, "audio_cross_attention_dim": 32, "caption_channels": 48},
        (128, 3, 4, 4), text=(7, 96), extra={"attention_mask": (7,)},
    ),
    "WAN21_CausalAR_T2V": Tiny(WAN, VIDEO),
    "WAN21_FlowRVS": Tiny(WAN, VIDEO),
    "WAN21_SCAIL": Tiny(_WAN_REF, VIDEO),
    "WAN21_SCAIL2": Tiny(_WAN_REF, VIDEO),
    "WAN22_WanDancer": Tiny(WAN | {"in_dim": 36}, VIDEO),
    "WAN_Animate2": Tiny(WAN, VIDEO, whole=True),
    "Kandinsky5": Tiny(_KANDINSKY, VIDEO),
    "Kandinsky5Image": Tiny(_KANDINSKY | {"visual_embed_dim": 64}, IMAGE),
    "CogVideoX_T2V": Tiny(_COGVIDEO, VIDEO),
    "CogVideoX_I2V": Tiny(_COGVIDEO, VIDEO),
    "CogVideoX_Inpaint": Tiny(_COGVIDEO, VIDEO),
    "ErnieImage": Tiny(
        {"hidden_size": 64, "num_attention_heads": 4, "num_layers": 3, "ffn_hidden_size": 128, "text_in_dim": 32,
         "rope_axes_dim": (4, 6, 6)},
        (128, 4, 4),
    ),
    "Krea2": Tiny(
        {"features": 64, "tdim": 32, "txtdim": 32, "heads": 4, "kvheads": 2, "multiplier": 2, "layers": 3, "txtlayers": 2,
         "txtheads": 4, "txtkvheads": 4},
        IMAGE, text=(7, 64),
    ),
    "Lens": Tiny(
        {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "enc_hidden_dim": 32, "axes_dims_rope": (4, 6, 6),
         "selected_layer_index": (0, 1)},
        (32, 8, 8), text=(7, 64),
    ),
    "StableAudio3": Tiny(
        {"io_channels": 256, "embed_dim": 128, "depth": 3, "num_heads": 2, "cond_token_dim": 768, "project_cond_tokens": True,
         "global_cond_dim": 768, "input_concat_dim": 0, "local_add_cond_dim": 257, "global_cond_type": "adaLN",
         "num_memory_tokens": 3, "norm_type": "rms_norm", "attn_kwargs": {"qk_norm": "rms", "differential": True},
         "timestep_features_type": "expo"},
        (256, 24), text=(5, 768),
    ),
    "MageFlow": Tiny(
        {"num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 32,
         "axes_dims_rope": (4, 6, 6)},
        (128, 4, 4),
    ),
    "JoyImage": Tiny(
        {"in_channels": 16, "hidden_size": 64, "patch_size": [1, 2, 2], "num_layers": 3, "num_attention_heads": 4,
         "text_dim": 32, "rope_dim_list": [4, 6, 6], "theta": 10000},
        (16, 1, 8, 8),
    ),
    "Ideogram4": Tiny(
        {"in_channels": 128, "num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 16, "intermediate_size": 128,
         "adaln_dim": 32, "llm_features_dim": 48, "rope_theta": 10000, "mrope_section": (4, 2, 2)},
        (128, 4, 4), text=(7, 48), extra={"attention_mask": (7,)},
    ),
    "Anima": Tiny(COSMOS | {"crossattn_emb_channels": 1024}, (16, 1, 8, 8), text=(7, 1024)),
    "Boogu": Tiny(
        {"axes_dim_rope": [4, 6, 6], "axes_lens": [64, 64, 64], "hidden_size": 64, "in_channels": 16, "multiple_of": 32,
         "num_attention_heads": 4, "num_kv_heads": 2, "num_layers": 3, "num_double_stream_layers": 2, "num_refiner_layers": 1,
         "patch_size": 2, "instruction_feat_dim": 32, "timestep_scale": 1000.0},
        IMAGE, extra={"attention_mask": (7,)},
    ),
    "ZImagePixelSpace": Tiny(
        LUMINA | {"in_channels": 3, "patch_size": 16, "dim": 256, "n_heads": 16, "n_kv_heads": 16, "z_image_modulation": True,
                  "time_scale": 1000.0, "pad_tokens_multiple": 4, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1,
                  "decoder_max_freqs": 2},
        (3, 64, 64), extra={"attention_mask": (7,)},
    ),
    "PixelDiTT2I": Tiny(_PIXELDIT, (3, 64, 64)),
    "PiD": Tiny(
        _PIXELDIT | {"lq_hidden_dim": 16, "lq_num_res_blocks": 1, "lq_latent_channels": 4, "sr_scale": 4},
        (3, 64, 64), extra={"lq_latent": (4, 2, 2), "degrade_sigma": ()},
    ),
    "ACEStep15": Tiny(
        {"hidden_size": 64, "text_hidden_dim": 32, "num_dit_layers": 3, "num_lyric_layers": 1, "num_timbre_layers": 1,
         "num_tokenizer_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 128, "fsq_dim": 64,
         "encoder_hidden_size": 64, "encoder_intermediate_size": 128, "encoder_num_heads": 4},
        (64, 20), extra={"conditioning_lyrics": (5, 32)},
    ),
    "HiDreamO1": Tiny(
        {"text_config_overrides": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
                                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_dims": [4, 2, 2]},
         "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1,
                                     "num_position_embeddings": 16, "deepstack_visual_indexes": ()}},
        (3, 64, 64), extra={"text_input_ids": (9,)}, whole=True,
    ),
    "MiniMaxH3": Tiny(
        {"hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 16,
         "ffn_hidden_size": 128, "text_dim": 32, "timestep_input_dim": 32, "time_embed_hidden_size": 64, "time_embed_dim": 32,
         "rope_inv_freq_len": 2},
        (24, 2, 4, 4), second=(32, 2, 8),
    ),
    "MiniMaxMusic3": Tiny({}, (128, 24), text=(7, 8 * 4096), extra={"conditioning_scale": (1, 1)}, whole=True),
    "SeedVR2": Tiny(
        {"vid_dim": 64, "heads": 4, "head_dim": 32, "rope_dim": 24, "num_layers": 4, "mm_layers": 2, "norm_eps": 1e-5,
         "mlp_type": "swiglu", "vid_out_norm": True},
        VIDEO, text=(9, 5120), extra={"condition": (17, 3, 8, 8)}, whole=True,
    ),
    "TripoSplat": Tiny(
        {"q_token_length": 24, "model_channels": 64, "cond_channels": 32, "num_blocks": 3, "num_refiner_blocks": 1,
         "num_head_channels": 16, "cond2_channels": None},
        (24, 16), second=(1, 5),
    ),
    "Trellis2": Tiny(
        {"resolution": 32, "model_channels": 96, "cond_channels": 32, "num_blocks": 2, "num_heads": 4},
        (32, 12, 1), extra={"embeds": (7, 32)}, fixed=_VOXELS, whole=True,
    ),
}  # fmt: skip

NO_DENOISERS = frozenset({"RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3"})
"""Classes that find or measure things in a picture, in one evaluation."""
