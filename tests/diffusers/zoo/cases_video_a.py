"""Wan and its kin, and the other video transformers of one image stream or two."""

import torch

from ._case import Case, Draw

FRAMES = 2


def _tokens(d: Draw) -> int:
    return FRAMES * d.size * d.size // 4


def _wan(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(4, FRAMES, d.size, d.size),
        "timestep": d.time(),
        "encoder_hidden_states": d.text(5, 8),
    }


def _first_frame_clean(d: Draw, count: int) -> torch.Tensor:
    """A timestep for each of ``count`` tokens (or frames): zero over the first half, which is given."""
    time = d.time()[:, None].repeat(1, count)
    time[:, : count // FRAMES] = 0
    return time


def _per_token(d: Draw, model: torch.nn.Module) -> dict:
    return {"timestep": _first_frame_clean(d, _tokens(d))}


WAN = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
    freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
)  # fmt: skip
WAN_IMAGE = WAN | dict(image_dim=8, added_kv_proj_dim=24)


def _wan_image(d: Draw) -> dict:
    """The attention of the image models counts on 512 text tokens: what comes before them is the image."""
    return _wan(d) | {"encoder_hidden_states": d.text(512, 8), "encoder_hidden_states_image": d.fixed(7, 8)}


def _anyflow(d: Draw) -> dict:
    time = d.time()[:, None].repeat(1, FRAMES)
    return {
        "hidden_states": d.noise(FRAMES, 4, d.size, d.size),
        "timestep": time,
        "r_timestep": 0.8 * time,
        "encoder_hidden_states": d.text(5, 8),
    }


def _cached(d: Draw, tokens: int) -> torch.Tensor:
    """Keys and values of earlier chunks: (2, batch, heads, tokens, width)."""
    return d.fixed(2, 2, tokens, 12).transpose(0, 1).contiguous()


class _FirstOutput(Case):
    """Of the outputs only the sample: the others are the cache that was given."""

    def call(self, model: torch.nn.Module, draw: Draw, *extras: str) -> list[torch.Tensor]:
        return super().call(model, draw, *extras)[:1]


def _animate2(d: Draw) -> dict:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    side = d.size // 2
    cache = WanAnimate2KVCache(3)
    for layer in cache.layer_caches:
        layer.store(d.fixed(side * side, 2, 16), d.fixed(side * side, 2, 16) * 0.5)
    return {
        "hidden_states": list(d.noise(4, FRAMES, d.size, d.size)),
        "timestep": d.time(),
        "encoder_hidden_states": list(d.text(5, 8)),
        "condition_latents": list(d.fixed(8, FRAMES, d.size, d.size)),
        "encoder_hidden_states_image": d.fixed(3, 1280),
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": _tokens(d),
        "reference_grid_sizes": torch.tensor([[1, side, side]]),
        "origin_len": 1,
        "origin_area": [8 * d.size, 8 * d.size],
    }


class _Animate2(Case):
    """Its attention masks are made beforehand: the model would compile what makes them."""

    def make(self, seed: int = 0) -> torch.nn.Module:
        from torch.nn.attention.flex_attention import create_block_mask

        model = super().make(seed)
        for size in (8, 12):
            hw = size * size // 4
            generated = 2 * hw  # its tokens and the one reference frame's, each padded to whole blocks of 128
            start = -(-generated // 128) * 128

            def allowed(b, h, query, key, hw=hw, generated=generated, start=start):
                reference = (query >= hw) & (key >= start) & (key < start + hw)
                return (query < generated) & ((key < generated) | reference)

            model.block_masks[1, hw] = create_block_mask(allowed, None, None, start, start + -(-hw // 128) * 128, device="cpu")
        return model


_HELIOS_HISTORY = [f"{kind}_history_{term}" for kind in ("indices_latents", "latents") for term in ("short", "mid", "long")]


def _frames(d: Draw, first: int, last: int) -> torch.Tensor:
    return torch.arange(first, last).repeat(d.batch, 1)


COG = dict(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=8,
    num_layers=3, sample_width=8, sample_height=8, sample_frames=5, max_text_seq_length=5,
)  # fmt: skip


def _cog(d: Draw) -> dict:
    return _wan(d) | {"hidden_states": d.noise(FRAMES, 4, d.size, d.size)}


def _rotary(d: Draw, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(_tokens(d))[:, None] / 10 ** torch.arange(width // 2)
    return angles.cos().repeat_interleave(2, dim=1), angles.sin().repeat_interleave(2, dim=1)


def _allegro_rotary(d: Draw) -> tuple:
    """Cosines and sines for each axis, and the positions of the tokens on it."""
    sides = FRAMES, d.size // 2, d.size // 2
    angles = [torch.arange(side)[:, None] / 10 ** torch.arange(2).repeat(2) for side in sides]
    places = torch.cartesian_prod(*map(torch.arange, sides)).T[:, None]
    return tuple((a.cos(), a.sin()) for a in angles), tuple(places)


def _short(d: Draw, length: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(length) < length - 2).repeat(d.batch, 1).to(dtype)


def _sana_wm(d: Draw) -> dict:
    camera = torch.eye(4).repeat(FRAMES, 1, 1)
    camera[:, 0, 3] = 0.3 * torch.arange(FRAMES)
    lens = torch.tensor([d.size, d.size, d.size / 2, d.size / 2]).repeat(FRAMES, 1)
    return {
        "hidden_states": d.noise(4, FRAMES, d.size, d.size),
        "timestep": _first_frame_clean(d, FRAMES)[:, None],
        "encoder_hidden_states": d.text(5, 8),
        "mask": torch.ones(d.batch, 5),
        "camera_conditions": torch.cat([camera.flatten(1), lens], dim=1).repeat(d.batch, 1, 1),
        "chunk_plucker": d.fixed(6, FRAMES, d.size, d.size),
    }


def _refiner(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(_tokens(d), 8),
        "encoder_hidden_states": d.text(5, 8),
        "timestep": d.time()[:, None].repeat(1, _tokens(d)),
        "video_rotary_emb": tuple(part.repeat(d.batch, 1, 1) for part in _rotary(d, 24)),
        "encoder_attention_mask": torch.ones(d.batch, 5),
    }


def _history(d: Draw):
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    cache = SanaWMRefinerKVCache(3)
    cache.sink_pe = tuple(part[:, :4] for part in _refiner(d)["video_rotary_emb"])
    for index in range(3):
        cache.get(index).store_sink(d.fixed(4, 24), d.fixed(4, 24) * 0.5)
        cache.get(index).store_history(d.fixed(6, 24), d.fixed(6, 24) * 0.5)
    return cache


CASES = [
    Case(
        cls="WanTransformer3DModel",
        config=WAN,
        inputs=_wan,
        blocks=("blocks",),
        extras={"per-token timestep": _per_token},
        notes="One image stream, text by cross-attention; blocks take positional arguments and return a bare tensor.",
    ),
    Case(
        cls="WanVACETransformer3DModel",
        config=WAN | dict(vace_layers=[0, 1], vace_in_channels=8),
        inputs=lambda d: _wan(d) | {"control_hidden_states": d.fixed(8, FRAMES, d.size, d.size)},
        blocks=("blocks",),
        extras={"control scale": lambda d, m: {"control_hidden_states_scale": torch.tensor([0.5, 0.2])}},
        notes="The VACE blocks run before the main ones on the same tokens; their hints are added between the main blocks.",
    ),
    Case(
        cls="WanAnimateTransformer3DModel",
        config=WAN_IMAGE | dict(
            in_channels=12, latent_channels=4, num_layers=4, inject_face_latents_blocks=2, motion_encoder_size=16,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8,
            face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        ),
        inputs=lambda d: _wan_image(d) | {
            "hidden_states": torch.cat([d.noise(4, 3, d.size, d.size), d.fixed(8, 3, d.size, d.size)], dim=1),
            "pose_hidden_states": d.fixed(4, 2, d.size, d.size),
            "face_pixel_values": d.fixed(3, 5, 16, 16),
        },
        blocks=("blocks",),
        extras={"blank face": lambda d, m: {"face_pixel_values": -torch.ones(d.batch, 3, 5, 16, 16)}},
        notes="After every second block a face adapter (a list of its own) adds to the tokens; the pose is added before.",
    ),
    _Animate2(
        cls="WanAnimate2Transformer3DModel",
        config=dict(
            text_len=8, in_dim=12, dim=32, ffn_dim=32, freq_dim=16, text_dim=8, out_dim=4, num_heads=2, num_layers=3,
        ),
        inputs=_animate2,
        blocks=("blocks",),
        batches=False,
        notes="Samples come and go in lists of one. A call that fills the key-value cache (kv_cache_mode 'extract', one before "
        "the steps) must not be skipped. An unconditional call leaves out the tenth block.",
    ),
    Case(
        cls="ChronoEditTransformer3DModel",
        config=WAN_IMAGE,
        inputs=_wan_image,
        blocks=("blocks",),
        extras={"per-token timestep": _per_token},
        notes="Wan's blocks; image and text tokens are one sequence for the cross-attention.",
    ),
    Case(
        cls="SkyReelsV2Transformer3DModel",
        config=WAN,
        inputs=_wan,
        blocks=("blocks",),
        extras={
            "diffusion forcing": lambda d, m: {
                "timestep": _first_frame_clean(d, FRAMES), "enable_diffusion_forcing": True,
            },
        },
        notes="Wan's blocks with a mask as fifth argument; diffusion forcing gives every frame its own timestep.",
    ),
    Case(
        cls="AnyFlowTransformer3DModel",
        config=WAN,
        inputs=_anyflow,
        blocks=("blocks",),
        extras={"first frame given": lambda d, m: {"timestep": _first_frame_clean(d, FRAMES)}},
        notes="Frames before channels; the timestep and the one to go to are given for each frame.",
    ),
    _FirstOutput(
        cls="AnyFlowFARTransformer3DModel",
        config=WAN,
        inputs=lambda d: _anyflow(d) | {
            "chunk_partition": [1, FRAMES],
            "kv_cache": {
                layer: {"full_cache": _cached(d, _tokens(d) * 2), "compressed_cache": _cached(d, 4)} for layer in range(3)
            },
            "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
        },
        blocks=("blocks",),
        extras={
            "no cache": lambda d, m: {"chunk_partition": [1, 1], "kv_cache": None, "kv_cache_flag": None},
        },
        notes="The tokens of one chunk, earlier chunks from the key-value cache, which is returned too. A call that fills the "
        "cache (kv_cache_flag['is_cache_step']) writes it in the blocks, in place, and returns no sample: not to be skipped.",
    ),
    Case(
        cls="HeliosTransformer3DModel",
        config={k: v for k, v in WAN.items() if k != "rope_max_seq_len"} | dict(rope_dim=(4, 4, 4)),
        inputs=lambda d: _wan(d) | {
            "indices_hidden_states": _frames(d, 6, 6 + FRAMES),
            "indices_latents_history_short": _frames(d, 5, 6), "latents_history_short": d.fixed(4, 1, d.size, d.size),
            "indices_latents_history_mid": _frames(d, 4, 5), "latents_history_mid": d.fixed(4, 1, d.size, d.size),
            "indices_latents_history_long": _frames(d, 0, 4), "latents_history_long": d.fixed(4, 4, d.size, d.size),
        },
        blocks=("blocks",),
        extras={"no history": lambda d, m: dict.fromkeys(_HELIOS_HISTORY)},
        notes="History tokens precede the noisy ones through the whole stack and are dropped by the output norm. The timestep "
        "embedding is per token, that of history tokens is of timestep zero.",
    ),
    Case(
        cls="CogVideoXTransformer3DModel",
        config=COG,
        inputs=_cog,
        blocks=("transformer_blocks",),
        result=0,
        extras={"rotary": lambda d, m: {"image_rotary_emb": _rotary(d, 8)}},
        notes="Blocks take and return (image, text); both enter as views of one tensor.",
    ),
    Case(
        cls="ConsisIDTransformer3DModel",
        config={k: v for k, v in COG.items() if k != "num_layers"} | dict(
            num_layers=4, is_train_face=True, cross_attn_interval=2, cross_attn_dim_head=4, cross_attn_num_heads=2,
            LFE_id_dim=4, LFE_vit_dim=4, LFE_depth=5, LFE_dim_head=4, LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=2,
            LFE_output_dim=10, LFE_ff_mult=1, LFE_num_scale=1,
        ),
        inputs=lambda d: _cog(d) | {"id_vit_hidden": [d.fixed(2, 4)], "id_cond": d.fixed(4)},
        blocks=("transformer_blocks",),
        result=0,
        extras={"rotary": lambda d, m: {"image_rotary_emb": _rotary(d, 8)}},
        notes="CogVideoX's blocks; after every second one a face cross-attention (a list of its own) adds to the image tokens. "
        "The text of the last block is put before the image for the final norm and dropped after it.",
    ),
    Case(
        cls="AllegroTransformer3DModel",
        config=dict(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=3, cross_attention_dim=24,
            sample_height=8, sample_width=8, sample_frames=2, caption_channels=8,
        ),
        inputs=lambda d: _wan(d) | {
            "encoder_attention_mask": torch.ones(d.batch, 5),
            "image_rotary_emb": _allegro_rotary(d),
        },
        blocks=("transformer_blocks",),
        extras={"short text": lambda d, m: {"encoder_attention_mask": _short(d, 5, torch.float32)}},
        notes="One image stream, text by cross-attention; blocks take keyword arguments.",
    ),
    Case(
        cls="LatteTransformer3DModel",
        config=dict(
            sample_size=8, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=8,
            in_channels=4, out_channels=8, cross_attention_dim=16, attention_bias=True, activation_fn="gelu-approximate",
            norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, video_length=FRAMES,
        ),
        inputs=_wan,
        blocks=("transformer_blocks", "temporal_transformer_blocks"),
        interleaved=True,
        notes="After each spatial block a temporal one runs on tokens turned from (batch * frames, patches) to (batch * "
        "patches, frames). Without temporal attention the last block of the stack does not run, and every step computes.",
    ),
    Case(
        cls="MochiTransformer3DModel",
        config=dict(
            num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=16, in_channels=4,
            text_embed_dim=16, time_embed_dim=8, max_sequence_length=5,
        ),
        inputs=lambda d: _wan(d) | {
            "encoder_hidden_states": d.text(5, 16), "encoder_attention_mask": torch.ones(d.batch, 5, dtype=torch.bool),
        },
        blocks=("transformer_blocks",),
        result=0,
        extras={"short text": lambda d, m: {"encoder_attention_mask": _short(d, 5, torch.bool)}},
        notes="Blocks take and return (image, text); the last one leaves the text as it is.",
    ),
    Case(
        cls="EasyAnimateTransformer3DModel",
        config=dict(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, num_layers=3,
            mmdit_layers=2, time_embed_dim=8, text_embed_dim=8, text_embed_dim_t5=8,
        ),
        inputs=_wan,
        blocks=("transformer_blocks",),
        result=0,
        extras={"second text": lambda d, m: {"encoder_hidden_states_t5": d.text(3, 8)}},
        notes="Blocks take (image, text) as positional arguments and return both; the later ones share weights between them.",
    ),
    Case(
        cls="TransformerTemporalModel",
        config=dict(num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=2, norm_num_groups=4),
        inputs=lambda d: {"hidden_states": d.noise(16, d.size, d.size)},
        blocks=("transformer_blocks",),
        conditioned=False,
        notes="A temporal layer of a UNet: several of them run in a step, on noise without text or timestep.",
    ),
    Case(
        cls="SanaVideoTransformer3DModel",
        config=dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=8, sample_size=8,
            rope_max_seq_len=32,
        ),
        inputs=lambda d: _wan(d) | {"encoder_attention_mask": torch.ones(d.batch, 5)},
        blocks=("transformer_blocks",),
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": (d.fixed(_tokens(d), 24),)},
            "per-token timestep": _per_token,
        },
        notes="One image stream, text by cross-attention; ControlNet residuals are added from the second block on.",
    ),
    Case(
        cls="SanaWMTransformer3DModel",
        config=dict(
            in_channels=4, num_layers=3, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
            chunk_plucker_channels=6, caption_channels=8, mlp_ratio=2.0,
        ),
        inputs=_sana_wm,
        blocks=("blocks",),
        hidden="x",
        extras={"no camera": lambda d, m: {"camera_conditions": None, "chunk_plucker": None}},
        notes="Blocks take the tokens as x, all arguments positional, and return a bare tensor; a timestep for each frame.",
    ),
    Case(
        cls="SanaWMLTX2RefinerTransformer3DModel",
        config=dict(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
            audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=6,
            audio_cross_attention_dim=12, num_layers=3, caption_channels=8,
        ),
        inputs=_refiner,
        blocks=("transformer_blocks",),
        extras={
            "history": lambda d, m: {"kv_cache": _history(d), "kv_cache_mode": "inject"},
        },
        notes="Video tokens only, although it carries audio weights. A call that captures keys and values "
        "(kv_cache_mode 'capture_pre_rope' or 'inject_and_capture_post_rope') writes them in the blocks: not to be skipped.",
    ),
]  # fmt: skip
