"""Text-to-image transformers, one half of them: two-stream ones like Flux, and those with one joint stream."""

import torch

from ._case import Case, Draw

TEXT = 5
"""Text tokens."""


def _grid(side: int, axes: int = 3) -> torch.Tensor:
    """Position ids of a square image: zeros, with row and column on axes 1 and 2."""
    ids = torch.zeros(side * side, axes)
    ids[:, 1], ids[:, 2] = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return ids


def _tokens(d: Draw, axes: int = 3, **more) -> dict:
    """Packed latents (2 x 2 of them a token), text and their position ids, as Flux takes them."""
    side = d.size // 2
    return {
        "hidden_states": d.noise(side * side, 4),
        "encoder_hidden_states": d.text(TEXT, 8),
        "img_ids": _grid(side, axes),
        "txt_ids": torch.zeros(TEXT, axes),
        "timestep": d.time(1),
    } | more


def _latents(d: Draw, time: float = 1000, **more) -> dict:
    plain = {"hidden_states": d.noise(4, d.size, d.size), "encoder_hidden_states": d.text(TEXT, 8), "timestep": d.time(time)}
    return plain | more


def _like_flux(**more) -> dict:
    return dict(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8,
    ) | more  # fmt: skip


def _control(d: Draw, blocks: int, fewer: int = 0) -> list[torch.Tensor]:
    """ControlNet residuals of the image tokens, as wide as the blocks."""
    return [d.fixed((d.size // 2) ** 2 - fewer, 32) for _ in range(blocks)]


def _mask(d: Draw, valid: int) -> torch.Tensor:
    """A mask of the text tokens, the last ones of them padding."""
    return (torch.arange(TEXT) < valid).repeat(d.batch, 1)


def _keys(d: Draw, tokens: int, heads: int = 2) -> torch.Tensor:
    return d.fixed(tokens, heads, 16)


# Flux 2 and 3


def _flux2_cached(d: Draw, model: torch.nn.Module) -> dict:
    """Reference image tokens as keys and values kept from the first step."""
    from diffusers.models.transformers import transformer_flux2 as home

    for blocks, processor in (
        (model.transformer_blocks, home.Flux2KVAttnProcessor),
        (model.single_transformer_blocks, home.Flux2KVParallelSelfAttnProcessor),
    ):
        for block in blocks:
            block.attn.set_processor(processor())
    cache = home.Flux2KVCache(2, 2)
    cache.num_ref_tokens = 4
    for layer in (*cache.double_block_caches, *cache.single_block_caches):
        layer.store(_keys(d, 4), _keys(d, 4) * 2)
    return {"kv_cache": cache, "kv_cache_mode": "cached"}


def _flux3_reference(d: Draw, model: torch.nn.Module) -> dict:
    ids = _grid(2, 4)
    ids[:, 0] = 10
    return {"image_cond_hidden_states": d.fixed(4, 4), "image_cond_ids": ids}


# Chroma


def _chroma_ip_adapter(d: Draw, model: torch.nn.Module) -> dict:
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    class Processor(FluxIPAdapterAttnProcessor):
        """Adds nothing where no image is given."""

        def __call__(
            self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None,
            ip_hidden_states=None, ip_adapter_masks=None,
        ):  # fmt: skip
            given = hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, ip_hidden_states or []
            return super().__call__(attn, *given, ip_adapter_masks)

    if not hasattr(model, "encoder_hid_proj"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for block in model.transformer_blocks:
                block.attn.set_processor(Processor(hidden_size=32, cross_attention_dim=8).requires_grad_(False))
        model.encoder_hid_proj = torch.nn.Identity()
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [d.fixed(4, 8)]}}


# Bria


def _fibo(d: Draw) -> dict:
    return _tokens(d, timestep=d.time(), text_encoder_layers=[d.text(TEXT, 6) * (1 + 0.1 * i) for i in range(4)])


def _fibo2(d: Draw) -> dict:
    return _latents(d, 1, encoder_hidden_states=d.text(2, TEXT, 8))


# Qwen-Image


def _qwen(d: Draw) -> dict:
    side = d.size // 2
    return {
        "hidden_states": d.noise(side * side, 4),
        "encoder_hidden_states": d.text(TEXT, 8),
        "encoder_hidden_states_mask": None,
        "timestep": d.time(1),
        "img_shapes": [[(1, side, side)]] * d.batch,
    }


def _qwen_reference(d: Draw, model: torch.nn.Module) -> dict:
    side = d.size // 2
    return {
        "hidden_states": torch.cat([d.noise(side * side, 4), d.fixed(4, 4)], dim=1),
        "img_shapes": [[(1, side, side), (1, 2, 2)]] * d.batch,
    }


def _slots(d: Draw, *images: int) -> torch.Tensor:
    """Which places hold 2 x 2 image tokens: some among the text, and the picture's own after it."""
    mask = torch.zeros(d.batch, TEXT + (d.size // 4) ** 2, dtype=torch.bool)
    mask[:, TEXT:] = True
    mask[:, list(images)] = True
    return mask


def _qwen21(d: Draw) -> dict:
    side = d.size // 4 * 2
    return {
        "hidden_states": d.noise(side * side, 4),
        "encoder_hidden_states": d.text(TEXT, 8),
        "timestep": d.time(1),
        "img_shapes": [[(1, side, side)]] * d.batch,
        "img_mask": _slots(d),
    }


def _qwen21_reference(d: Draw, model: torch.nn.Module) -> dict:
    side = d.size // 4 * 2
    return {
        "hidden_states": torch.cat([d.fixed(4, 4), d.noise(side * side, 4)], dim=1),
        "img_shapes": [[(1, 2, 2), (1, side, side)]] * d.batch,
        "img_mask": _slots(d, 2),
    }


def _qwen21_cached(d: Draw, model: torch.nn.Module) -> dict:
    """Text as keys and values kept from the first step; only the picture's tokens go through the blocks."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    cache = QwenImage21KVCache(3)
    for layer in cache.layer_caches:
        layer.store(_keys(d, TEXT), _keys(d, TEXT) * 2)
    return {"kv_cache": cache, "kv_cache_mode": "cached"}


# Stable Diffusion 3


def _sd3_ip_adapter(d: Draw, model: torch.nn.Module) -> dict:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    if not hasattr(model, "image_proj"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for block in model.transformer_blocks:
                for attention in (block.attn, block.attn2):
                    if attention is not None:
                        attention.set_processor(SD3IPAdapterJointAttnProcessor2_0(32, 32, 16, 16).requires_grad_(False))
            model.image_proj = IPAdapterTimeImageProjection(
                embed_dim=8, output_dim=32, hidden_dim=16, depth=1, dim_head=8, heads=2, num_queries=4, timestep_in_dim=16
            ).requires_grad_(False)
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": d.fixed(3, 8)}}


# GLM-Image, HiDream, Ideogram, Krea


def _glm(d: Draw) -> dict:
    return _latents(
        d,
        timestep=d.time() - 1,
        prior_token_id=(torch.arange((d.size // 2) ** 2) % 16).repeat(d.batch, 1),
        prior_token_drop=torch.zeros(d.batch, (d.size // 2) ** 2, dtype=torch.bool),
        target_size=torch.full((d.batch, 2), d.size * 8.0),
        crop_coords=torch.zeros(d.batch, 2),
    )


def _glm_cached(d: Draw, model: torch.nn.Module) -> dict:
    """Keys and values of a picture to be edited."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(3)
    caches.set_mode("read")
    for layer in caches.caches:
        layer.k_caches, layer.v_caches = [[_keys(d, 4)[:1] * (1 + i)] for i in range(2)]
    return {"kv_caches": caches}


def _hidream(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(4, d.size, d.size),
        "timesteps": d.time(),
        "encoder_hidden_states_t5": d.text(3, 8),
        "encoder_hidden_states_llama3": d.text(4, TEXT, 6).transpose(0, 1),
        "pooled_embeds": d.text(8),
    }


def _ideogram(d: Draw) -> dict:
    side = d.size // 2
    total = TEXT + side * side
    text = torch.arange(total) < TEXT
    ids = torch.cat([torch.arange(TEXT)[:, None].expand(-1, 3), (_grid(side) + 65536).long()])
    return {
        "hidden_states": d.noise(total, 4),
        "timestep": 1 - d.time(1),
        "encoder_hidden_states": d.text(total, 8),
        "position_ids": ids.repeat(d.batch, 1, 1),
        "segment_ids": torch.ones(d.batch, total, dtype=torch.long),
        "indicator": torch.where(text, 3, 2).repeat(d.batch, 1),
    }


def _ideogram_per_token(d: Draw, model: torch.nn.Module) -> dict:
    times = torch.linspace(0.5, 1, TEXT + (d.size // 2) ** 2)
    return {"timestep": (1 - d.time(1))[:, None] * times}


def _krea(d: Draw) -> dict:
    side = d.size // 2
    return {
        "hidden_states": d.noise(side * side, 4),
        "encoder_hidden_states": d.text(TEXT, 2, 8),
        "timestep": d.time(1),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), _grid(side)]),
    }


BOTH = ("transformer_blocks", "single_transformer_blocks")
AXES = (4, 6, 6)

CASES = [
    Case(
        cls="Flux2Transformer2DModel",
        config=_like_flux(timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False),
        inputs=lambda d: _tokens(d, 4),
        blocks=BOTH, text="prefix",
        extras={"kv_cached": _flux2_cached},
        notes="Text goes in front of the image between the two lists; single blocks take and return the whole, a bare tensor. "
        "A call with kv_cache_mode='extract' fills a cache in its blocks and must not be skipped.",
    ),
    Case(
        cls="Flux3Transformer2DModel",
        config=_like_flux(cond_in_channels=4, timestep_channels=32, axes_dims_rope=(4, 4, 4, 4)),
        inputs=lambda d: _tokens(d, 4),
        blocks=("mode_blocks.image", "single_transformer_blocks"), result=1, text="suffix",
        extras={"reference": _flux3_reference},
        notes="The text's own blocks run before the image's, those of a reference image between the two lists; its tokens are "
        "then appended to the image's. Single blocks return (text, image), image blocks a bare tensor.",
    ),
    Case(
        cls="ChromaTransformer2DModel",
        config=_like_flux(
            axes_dims_rope=AXES, approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
        ),
        inputs=_tokens,
        blocks=BOTH, text="prefix",
        extras={
            "controlnet": lambda d, m: {
                "controlnet_block_samples": _control(d, 2), "controlnet_single_block_samples": _control(d, 2),
            },
            "attention_mask": lambda d, m: {
                "attention_mask": torch.nn.functional.pad(_mask(d, 3).float(), (0, (d.size // 2) ** 2), value=1.0),
            },
            "ip_adapter": _chroma_ip_adapter,
        },
        notes="Text goes in front of the image between the two lists. ControlNet residuals are added between blocks and after "
        "the last one, there in place on the single block's result.",
    ),
    Case(
        cls="BriaTransformer2DModel",
        config=_like_flux(axes_dims_rope=AXES),
        inputs=lambda d: _tokens(d, timestep=d.time()),
        blocks=BOTH, result=1,
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": _control(d, 2)},
            "controlnet_single": lambda d, m: {"controlnet_single_block_samples": _control(d, 2, fewer=TEXT)},
        },
        notes="Single blocks concatenate and split inside themselves, yet their ControlNet residuals are added, in place, to "
        "the image tokens without the first few (as many as text tokens), so those must be that much shorter.",
    ),
    Case(
        cls="BriaFiboTransformer2DModel",
        config=_like_flux(axes_dims_rope=AXES, text_encoder_dim=6),
        inputs=_fibo,
        blocks=BOTH, text="prefix",
        notes="Between all blocks half the text's channels are replaced by another layer's text; around each single block "
        "text is put in front of the image and cut off again.",
    ),
    Case(
        cls="BriaFibo2Transformer2DModel",
        config=dict(
            in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=8, injection_layer_ids=(1,),
            perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=4, gist_step=1, gist_min_text_len=2,
            gist_max_text_len=8, axes_dims=AXES, axes_lens=(16, 16, 16),
        ),
        inputs=_fibo2,
        blocks=("layers",), hidden="x",
        extras={
            "reference": lambda d, m: {"context_latents": [d.fixed(4, 4, 4)]},
            "text_padding": lambda d, m: {"encoder_attention_mask": _mask(d, 3)},
        },
        notes="One sequence of gist tokens (made of the text), image and reference images, together from the first block on; "
        "some blocks attend to the text besides.",
    ),
    Case(
        cls="LongCatImageTransformer2DModel",
        config=_like_flux(pooled_projection_dim=8, axes_dims_rope=AXES),
        inputs=_tokens,
        blocks=BOTH, result=1,
        notes="Blocks return (text, image); single blocks concatenate them inside themselves.",
    ),
    Case(
        cls="OvisImageTransformer2DModel",
        config=_like_flux(out_channels=4, axes_dims_rope=AXES),
        inputs=_tokens,
        blocks=BOTH, result=1,
        notes="Blocks return (text, image); single blocks concatenate them inside themselves.",
    ),
    Case(
        cls="QwenImageTransformer2DModel",
        config=dict(
            in_channels=4, out_channels=1, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8,
            axes_dims_rope=AXES,
        ),
        inputs=_qwen,
        blocks=("transformer_blocks",), result=1,
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": _control(d, 3)},
            "reference": _qwen_reference,
            "text_padding": lambda d, m: {"encoder_hidden_states_mask": _mask(d, 3)},
        },
        notes="Blocks return (text, image). ControlNet residuals are added between blocks and after the last one.",
    ),
    Case(
        cls="QwenImage21Transformer2DModel",
        config=dict(
            in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, context_in_dim=8,
            axes_dims_rope=AXES,
        ),
        inputs=_qwen21,
        blocks=("transformer_blocks",),
        extras={
            "reference": _qwen21_reference,
            "text_padding": lambda d, m: {"encoder_hidden_states_mask": _mask(d, 3)},
            "kv_cached": _qwen21_cached,
        },
        notes="Text and image are one sequence from the first block on and in the result, but with a filled kv_cache only the "
        "image is. A call with kv_cache_mode='extract' fills a cache in its blocks and must not be skipped.",
    ),
    Case(
        cls="SD3Transformer2DModel",
        config=dict(
            sample_size=16, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=8,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        inputs=lambda d: _latents(d, pooled_projections=d.text(8)),
        blocks=("transformer_blocks",), result=1,
        extras={
            "controlnet": lambda d, m: {"block_controlnet_hidden_states": _control(d, 3)},
            "ip_adapter": _sd3_ip_adapter,
        },
        notes="Blocks return (text, image), the last one (None, image). ControlNet residuals are added after all but the last; "
        "skip_layers leaves blocks out.",
    ),
    Case(
        cls="AuraFlowTransformer2DModel",
        config=dict(
            sample_size=16, in_channels=4, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32, out_channels=4, pos_embed_max_size=64,
        ),
        inputs=lambda d: _latents(d, 1),
        blocks=("joint_transformer_blocks", "single_transformer_blocks"), text="prefix",
        notes="Text (with 8 register tokens) goes in front of the image between the two lists; joint blocks return (text, "
        "image), single ones a bare tensor.",
    ),
    Case(
        cls="HunyuanImageTransformer2DModel",
        config=dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
            num_refiner_layers=1, patch_size=(2, 2), text_embed_dim=8, rope_axes_dim=(8, 8),
        ),
        inputs=lambda d: _latents(d, encoder_attention_mask=_mask(d, TEXT)),
        blocks=BOTH, result=0,
        extras={"text_padding": lambda d, m: {"encoder_attention_mask": _mask(d, 3)}},
        notes="All blocks take and return (image, text), called with positions; single blocks concatenate them inside "
        "themselves.",
    ),
    Case(
        cls="HiDreamImageTransformer2DModel",
        config=dict(
            patch_size=2, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            caption_channels=[8, 6], text_emb_dim=8, axes_dims_rope=AXES, max_resolution=(16, 16), llama_layers=[0, 1, 2, 3],
        ),
        inputs=_hidream,
        blocks=("double_stream_blocks", "single_stream_blocks"), text="suffix",
        extras={"not_square": lambda d, m: {"hidden_states": d.noise(4, d.size, d.size // 2)}},
        notes="Double blocks return (image, text). Before every block another text layer's tokens are appended, after it they "
        "are cut off; single blocks take image, text and those in one tensor. A picture that is no square is padded.",
    ),
    Case(
        cls="ErnieImageTransformer2DModel",
        config=dict(
            hidden_size=32, num_attention_heads=2, num_layers=3, ffn_hidden_size=32, in_channels=4, out_channels=4,
            text_in_dim=8, rope_axes_dim=AXES,
        ),
        inputs=lambda d: {
            "hidden_states": d.noise(4, d.size, d.size),
            "timestep": d.time(),
            "text_bth": d.text(TEXT, 8),
            "text_lens": torch.full((d.batch,), TEXT),
        },
        blocks=("layers",), hidden="x",
        extras={"text_padding": lambda d, m: {"text_lens": torch.full((d.batch,), 3)}},
        notes="Image and text are one sequence from the first block on, with tokens as dimension 0 and the batch as 1.",
    ),
    Case(
        cls="GlmImageTransformer2DModel",
        config=dict(
            in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, text_embed_dim=8,
            time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=16,
        ),
        inputs=_glm,
        blocks=("transformer_blocks",), result=0,
        extras={
            "prior_dropped": lambda d, m: {"prior_token_drop": torch.ones(d.batch, (d.size // 2) ** 2, dtype=torch.bool)},
            "text_padding": lambda d, m: {"attention_mask": _mask(d, 3).float()},
            "kv_cached": _glm_cached,
        },
        notes="Blocks take and return (image, text), called with positions. kv_caches in mode 'write' are filled by the "
        "blocks, such a call must not be skipped.",
    ),
    Case(
        cls="Ideogram4Transformer2DModel",
        config=dict(
            in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=16,
            llm_features_dim=8, rope_theta=10000, mrope_section=(2, 2, 2),
        ),
        inputs=_ideogram,
        blocks=("layers",),
        extras={"timestep_per_token": _ideogram_per_token},
        notes="Text and image are one sequence of the caller's, in the inputs, the blocks and the result; time is 0 for noise.",
    ),
    Case(
        cls="Krea2Transformer2DModel",
        config=dict(
            in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=8, num_text_layers=2, text_num_attention_heads=2,
            text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
            axes_dims_rope=AXES,
        ),
        inputs=_krea,
        blocks=("transformer_blocks",),
        extras={"text_padding": lambda d, m: {"encoder_attention_mask": _mask(d, 3)}},
        notes="Text goes in front of the image before the first block and is cut off after the last; blocks are called with "
        "positions.",
    ),
]  # fmt: skip
