"""Image transformers with one stream of image tokens, and the few of other families that have a module of their own."""

from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina

import torch

from ._case import Case, Draw


class _Filled(Case):
    """A class that leaves some of its weights as uninitialised memory."""

    def fill(self, model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj", "pad_token")):
                torch.nn.init.normal_(parameter, std=0.2)


def _ones(d: Draw, *shape: int) -> torch.Tensor:
    return torch.ones(d.batch, *shape)


def _masked(d: Draw, length: int) -> torch.Tensor:
    """A text mask that leaves out the last token."""
    return (torch.arange(length) < length - 1).long().repeat(d.batch, 1)


def _tokens(d: Draw) -> int:
    return d.size * d.size // 4


def _clean(d: Draw) -> torch.Tensor:
    """The timestep of those who count from 0, the noise, to 1, the image."""
    return 1 - d.time(1)


def _ids(d: Draw, length: int, count: int) -> torch.Tensor:
    """Token ids that differ between conditions."""
    return (d.label(count)[:, None] + 3 * torch.arange(length)) % count


def _captioned(d: Draw) -> dict:
    """Latents with text beside them."""
    return {"hidden_states": d.noise(4, d.size, d.size), "encoder_hidden_states": d.text(5, 8), "timestep": d.time()}


def _pixart(d: Draw) -> dict:
    more = {"encoder_attention_mask": _ones(d, 5), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return _captioned(d) | more


_PIXART = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
    "cross_attention_dim": 16, "sample_size": 8, "patch_size": 2, "caption_channels": 8, "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000, "attention_bias": True, "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
}  # fmt: skip


def _prior(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(8),
        "timestep": d.time(),
        "proj_embedding": d.text(8),
        "encoder_hidden_states": d.text(5, 8),
        "attention_mask": _ones(d, 5).bool(),
    }


def _hunyuan(d: Draw) -> dict:
    side = d.size // 2
    return {
        "hidden_states": d.noise(4, d.size, d.size),
        "timestep": d.time(),
        "encoder_hidden_states": d.text(5, 8),
        "text_embedding_mask": _ones(d, 5),
        "encoder_hidden_states_t5": d.text(6, 8),
        "text_embedding_mask_t5": _ones(d, 6),
        "image_meta_size": torch.tensor([[64, 64, 64, 64, 0, 0]]).repeat(d.batch, 1),
        "style": torch.zeros(d.batch, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), (side, side)), (side, side), output_type="pt"),
    }


def _lumina(d: Draw) -> dict:
    more = {
        "encoder_mask": _ones(d, 5),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16),
        "cross_attention_kwargs": {},
    }
    return _captioned(d) | {"timestep": _clean(d)} | more


def _cogview(d: Draw) -> dict:
    pixels = torch.full((d.batch, 2), 8.0 * d.size)
    return _captioned(d) | {"original_size": pixels, "target_size": pixels, "crop_coords": torch.zeros(d.batch, 2)}


_COGVIEW = {
    "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4, "pos_embed_max_size": 8,
    "sample_size": 8,
}  # fmt: skip


def _omnigen(d: Draw, reference: bool = False) -> dict:
    """Prompt, timestep and image are one sequence; the prompt is causal, the rest sees everything."""
    image = 4 if reference else 0
    before, length = 5 + image, 5 + image + 1 + _tokens(d)
    mask = torch.ones(length, length).tril()
    mask[before:] = 1
    return {
        "hidden_states": d.noise(4, d.size, d.size),
        "timestep": _clean(d),
        "input_ids": _ids(d, before, 40),
        "input_img_latents": list(d.fixed(4, 4, 4).split(1)) if reference else [],
        "input_image_sizes": {row: [[2, 2 + image]] for row in range(d.batch)} if reference else {},
        "attention_mask": mask.repeat(d.batch, 1, 1),
        "position_ids": torch.arange(length).repeat(d.batch, 1),
    }


def _nucleus(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(_tokens(d), 16),
        "img_shapes": [(1, d.size // 2, d.size // 2)] * d.batch,
        "encoder_hidden_states": d.text(5, 8),
        "timestep": d.time(1),
    }


def _z_image(d: Draw) -> dict:
    return {"x": list(d.noise(4, 1, d.size, d.size)), "t": _clean(d), "cap_feats": list(d.text(5, 8))}


def _z_image_omni(d: Draw, model: torch.nn.Module) -> dict:
    """A clean image before the noisy one, each with its piece of the prompt."""
    return {
        "x": [[clean, noisy] for clean, noisy in zip(d.fixed(4, 1, 8, 8), d.noise(4, 1, d.size, d.size), strict=True)],
        "cap_feats": [list(row) for row in d.text(3, 5, 8)],
        "siglip_feats": [None] * d.batch,
        "image_noise_mask": [[0, 1]] * d.batch,
    }


_JOY = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 8,
    "num_layers": 3, "rope_dim_list": [4, 6, 6],
}  # fmt: skip


def _joy(d: Draw) -> dict:
    return {"hidden_states": d.noise(1, 4, 1, d.size, d.size), "encoder_hidden_states": d.text(5, 8), "timestep": d.time()}


def _joy_reference(d: Draw, model: torch.nn.Module) -> dict:
    return {"hidden_states": torch.cat([d.fixed(1, 4, 1, d.size, d.size), d.noise(1, 4, 1, d.size, d.size)], dim=1)}


def _joy_plus(d: Draw) -> dict:
    """Patches of the noisy image and of a reference of another size, one after another."""
    return {
        "hidden_states": torch.cat([d.noise(_tokens(d), 4, 1, 2, 2), d.fixed(6, 4, 1, 2, 2)], dim=1),
        "encoder_hidden_states": d.text(5, 8),
        "encoder_hidden_states_mask": _ones(d, 5),
        "timestep": d.time(),
        "shape_list": [[(1, d.size // 2, d.size // 2), (1, 2, 3)]] * d.batch,
    }


def _protein(d: Draw) -> dict:
    per_atom = {f"condition_{name}_1_atom": torch.zeros(d.batch, d.size, 37) for name in _PER_ATOM}
    return {
        "bb_ca": d.noise(d.size, 3),
        "local_latents": d.noise(d.size, 8),
        "bb_ca_time": _clean(d),
        "local_latents_time": _clean(d),
        "padding_mask": _ones(d, d.size).bool(),
        "token_type": torch.zeros(d.batch, d.size, dtype=torch.long),
        "atom37_mask": _ones(d, d.size, 37),
        "conditioning": per_atom
        | {
            "is_in_context_conditioning": torch.zeros(d.batch, d.size),
            "supports_local_latent": _ones(d, d.size),
            "molecule_iid": torch.zeros(d.batch, d.size),
            "molecule_entity_id": torch.zeros(d.batch, d.size),
            "condition_index-group_1_token": torch.zeros(d.batch, d.size),
            "token_bond_path_length": torch.zeros(d.batch, d.size, d.size),
            "condition_hotspot_1_atom": d.text(d.size, 37),
        },
    }


_PER_ATOM = ("hbond", "pistack", "pication", "saltbridge", "hydrophobic", "metal-coord")


CASES = [
    Case(
        cls="DiTTransformer2DModel",
        config={
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
            "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10,
        },
        inputs=lambda d: {"hidden_states": d.noise(4, d.size, d.size), "timestep": d.time(), "class_labels": d.label(10)},
        blocks=("transformer_blocks",),
        notes="After the stack the forward reaches into the first block for its timestep embedding (`norm1.emb`).",
    ),
    Case(
        cls="PixArtTransformer2DModel",
        config=_PIXART,
        inputs=_pixart,
        blocks=("transformer_blocks",),
    ),
    Case(
        cls="Transformer2DModel",
        config=_PIXART,
        inputs=_pixart,
        blocks=("transformer_blocks",),
        notes="Here as the denoiser it was for PixArt (patches); with unpatched input it is the attention module of U-Nets.",
    ),
    Case(
        cls="PriorTransformer",
        config={"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "embedding_dim": 8, "num_embeddings": 5},
        inputs=_prior,
        sized=False,
        blocks=("transformer_blocks",),
        notes="Denoises one embedding: text, pooled text, timestep, noise and a learned token are one causal sequence, "
        "and only the last token is read after the stack. Its length is fixed by the config.",
    ),
    Case(
        cls="DreamLiteTransformer2DModel",
        config={
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16, "num_layers": 2, "norm_num_groups": 4,
            "cross_attention_dim": 8, "use_linear_projection": True, "qk_norm": "rms_norm", "num_kv_heads": 2,
            "ff_mult": 2,
        },
        inputs=lambda d: {"hidden_states": d.noise(16, d.size, d.size), "encoder_hidden_states": d.text(5, 8)},
        why_not="No denoiser but the attention module of the DreamLite U-Net, run at many places of it; it sees no timestep.",
    ),
    Case(
        cls="HunyuanDiT2DModel",
        config={
            "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "patch_size": 2, "sample_size": 8,
            "hidden_size": 16, "num_layers": 6, "mlp_ratio": 2.0, "cross_attention_dim": 8, "cross_attention_dim_t5": 8,
            "pooled_projection_dim": 8, "text_len": 5, "text_len_t5": 6,
        },
        inputs=_hunyuan,
        blocks=("blocks",),
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": [d.fixed(_tokens(d), 16) for _ in range(2)]},
        },
        notes="U-shaped: the first blocks' results are put on a list and go to the last blocks as `skip`, which also takes "
        "the ControlNet's residuals; those are popped off the list that the caller passed, and none may remain.",
    ),
    _Filled(
        cls="LuminaNextDiT2DModel",
        config={
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_layers": 3,
            "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "cross_attention_dim": 8,
        },
        inputs=_lumina,
        blocks=("layers",),
    ),
    Case(
        cls="Lumina2Transformer2DModel",
        config={
            "sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_layers": 3,
            "num_refiner_layers": 2, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16,
            "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 16, 16), "cap_feat_dim": 8,
        },
        inputs=lambda d: _captioned(d) | {"timestep": _clean(d), "encoder_attention_mask": _ones(d, 5).bool()},
        blocks=("layers",),
        extras={"text_mask": lambda d, m: {"encoder_attention_mask": _masked(d, 5).bool()}},
        notes="Text and image are refined apart (blocks of the same class), then joined in one padded sequence before the "
        "stack; the mask decides how many text tokens it has.",
    ),
    Case(
        cls="SanaTransformer2DModel",
        config={
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3,
            "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16,
            "caption_channels": 8, "sample_size": 8,
        },
        inputs=lambda d: _captioned(d) | {"encoder_attention_mask": _ones(d, 5)},
        blocks=("transformer_blocks",),
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": (d.fixed(d.size * d.size, 16),)},
            "controlnet to the last block": lambda d, m: {
                "controlnet_block_samples": (d.fixed(d.size * d.size, 16),) * 2
            },
        },
        notes="The ControlNet's residuals are added after the second and later blocks, the last one included; there the sum "
        "is outside of the block.",
    ),
    Case(
        cls="CogView3PlusTransformer2DModel",
        config=_COGVIEW,
        inputs=_cogview,
        blocks=("transformer_blocks",),
        result=0,
        notes="Blocks return (image, text).",
    ),
    Case(
        cls="CogView4Transformer2DModel",
        config=_COGVIEW | {"rope_axes_dim": (16, 16)},
        inputs=_cogview,
        blocks=("transformer_blocks",),
        result=0,
        extras={"text_mask": lambda d, m: {"attention_mask": _masked(d, 5)}},
        notes="Blocks return (image, text).",
    ),
    Case(
        cls="OmniGenTransformer2DModel",
        config={
            "in_channels": 4, "patch_size": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 32, "num_layers": 3, "pad_token_id": 0, "vocab_size": 48, "pos_embed_max_size": 8,
            "time_step_dim": 16, "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        },
        inputs=_omnigen,
        blocks=("layers",),
        extras={"reference": lambda d, m: _omnigen(d, reference=True)},
        notes="Prompt (token ids, embedded inside), timestep and image are one sequence; only the image's end of it is used "
        "after the stack.",
    ),
    Case(
        cls="PRXTransformer2DModel",
        config={
            "in_channels": 4, "patch_size": 2, "context_in_dim": 8, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2,
            "depth": 3, "axes_dim": [4, 4],
        },
        inputs=lambda d: _captioned(d) | {"timestep": d.time(1), "attention_mask": _masked(d, 5).bool()},
        blocks=("blocks",),
    ),
    _Filled(
        cls="NucleusMoEImageTransformer2DModel",
        config={
            "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
            "num_attention_heads": 2, "num_key_value_heads": 1, "joint_attention_dim": 8, "axes_dims_rope": (4, 2, 2),
            "mlp_ratio": 12.0, "num_experts": 4, "dense_moe_strategy": "leave_first_block_dense",
            "moe_intermediate_dim": 16, "capacity_factors": 2.0,
        },
        inputs=_nucleus,
        blocks=("transformer_blocks",),
        extras={"text_mask": lambda d, m: {"encoder_hidden_states_mask": _masked(d, 5)}},
        notes="Every block is given the same text and only the image goes on; experts choose their tokens.",
    ),
    Case(
        cls="ZImageTransformer2DModel",
        config={
            "in_channels": 4, "dim": 32, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2,
            "cap_feat_dim": 8, "axes_dims": [4, 6, 6], "axes_lens": [128, 16, 16],
        },
        inputs=_z_image,
        blocks=("layers",),
        hidden="x",
        batches=False,
        extras={
            "controlnet": lambda d, m: {"controlnet_block_samples": {0: d.fixed(32 * (1 + -(-_tokens(d) // 32)), 32)}},
            "omni": _z_image_omni,
        },
        notes="Samples go in and out as lists. Image and text are refined apart (blocks of the same class) and joined before "
        "the stack, each padded to a multiple of 32; ControlNet residuals are added between the blocks by their number.",
    ),
    Case(
        cls="JoyImageEditTransformer3DModel",
        config=_JOY,
        inputs=_joy,
        blocks=("double_blocks",),
        result=0,
        extras={"reference": _joy_reference},
        notes="Blocks return (image, text). Several images go in as one with more frames.",
    ),
    Case(
        cls="JoyImageEditPlusTransformer3DModel",
        config=_JOY,
        inputs=_joy_plus,
        blocks=("double_blocks",),
        result=0,
        notes="Blocks return (image, text). The patches of several images are one sequence, padded at its end.",
    ),
    Case(
        cls="T5FilmDecoder",
        config={
            "input_dims": 8, "targets_length": 12, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_kv": 8,
            "d_ff": 16, "dropout_rate": 0.1,
        },
        inputs=lambda d: {
            "encodings_and_masks": [(d.text(5, 16), _ones(d, 5)), (d.fixed(4, 16), _ones(d, 4))],
            "decoder_input_tokens": d.noise(d.size, 8),
            "decoder_noise_time": d.time(1),
        },
        blocks=("decoders",),
        result=0,
        notes="Blocks return a tuple of one. The forward takes no `hidden_states` and returns a bare tensor.",
    ),
    Case(
        cls="RFD4ProteinaTransformer",
        config={
            "nlayers": 4, "token_dim": 16, "nheads": 2, "dim_cond": 16, "pair_repr_dim": 8, "latent_dim": 8,
            "token_type_emb_dim": 8, "cath_emb_dim": 8, "t_emb_dim": 16, "seq_sep_dim": 8, "xt_pair_dist_dim": 8,
            "tri_mult_c": 8, "num_sequence_classes": 8,
        },
        inputs=_protein,
        blocks=("transformer_layers",),
        hidden="values",
        notes="After every other block a module beside the stack (`pair_update_layers`) updates the pair features that the "
        "next block takes. `recycle_depth` above 1 runs the stack several times in one call, fed with its own result.",
    ),
]  # fmt: skip
