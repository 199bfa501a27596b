"""The model classes that ComfyUI has got since 0.3.75, tiny."""

from __future__ import annotations

from typing import Any

from host.figures import FLUX, IMAGE, VIDEO, WAN, Tiny

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
_WAN_REF: dict[str, Any] = WAN | {"in_dim": 20}

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
}  # fmt: skip

NO_DENOISERS = frozenset({"RT_DETR_v4", "SAM3", "SAM31", "DepthAnything3"})
"""Classes that find or measure things in a picture, in one evaluation."""
UNTRIED = frozenset(
    {"StableAudio3", "MiniMaxH3", "PiD", "PixelDiTT2I", "TripoSplat", "HiDreamO1", "SeedVR2", "ACEStep15", "MiniMaxMusic3",
     "Boogu", "MageFlow", "JoyImage", "Ideogram4", "Anima", "Trellis2", "ZImagePixelSpace"}
)  # fmt: skip
"""Classes that no tiny model was made of yet."""
