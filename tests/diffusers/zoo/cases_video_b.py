"""Hunyuan Video, LTX, Cosmos, Kandinsky, Motif, MiniMax, and the audio transformers."""

import torch

from ._case import Case, Draw


def _ones(d: Draw, tokens: int, padded: int = 0) -> torch.Tensor:
    """An attention mask, the last ``padded`` tokens of every row masked."""
    return (torch.arange(tokens) < tokens - padded).float().expand(d.batch, tokens).clone()


def _padded(d: Draw, model: torch.nn.Module) -> dict:
    return {"encoder_attention_mask": _ones(d, 5, padded=2)}


def _hunyuan(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(4, 2, d.size, d.size),
        "timestep": d.time(1000),
        "encoder_hidden_states": d.text(5, 16),
        "encoder_attention_mask": _ones(d, 5),
        "pooled_projections": d.text(8),
    }


def _hunyuan15(d: Draw) -> dict:
    return {
        "hidden_states": torch.cat([d.noise(4, 2, d.size, d.size), torch.zeros(d.batch, 5, 2, d.size, d.size)], dim=1),
        "timestep": d.time(1000),
        "encoder_hidden_states": d.text(5, 16),
        "encoder_attention_mask": _ones(d, 5),
        "encoder_hidden_states_2": d.text(4, 8),
        "encoder_attention_mask_2": _ones(d, 4, padded=1),
        "image_embeds": torch.zeros(d.batch, 3, 12),
    }


def _framepack(d: Draw) -> dict:
    return _hunyuan(d) | {
        "image_embeds": d.fixed(3, 16),
        "indices_latents": torch.tensor([7, 8]),
        "latents_clean": d.fixed(4, 2, d.size, d.size),
        "indices_latents_clean": torch.tensor([0, 6]),
        "latents_history_2x": d.fixed(4, 2, d.size, d.size),
        "indices_latents_history_2x": torch.tensor([4, 5]),
        "latents_history_4x": d.fixed(4, 3, d.size, d.size),
        "indices_latents_history_4x": torch.tensor([1, 2, 3]),
    }


def _ltx(d: Draw) -> dict:
    side = d.size // 2
    return {
        "hidden_states": d.noise(2 * side * side, 4),
        "encoder_hidden_states": d.text(5, 16),
        "timestep": d.time(1000),
        "encoder_attention_mask": _ones(d, 5),
        "num_frames": 2, "height": side, "width": side,
    }  # fmt: skip


def _ltx2(d: Draw) -> dict:
    return _ltx(d) | {
        "audio_hidden_states": d.noise(6, 4),
        "encoder_hidden_states": d.text(5, 32),
        "audio_encoder_hidden_states": d.text(5, 16),
        "audio_encoder_attention_mask": _ones(d, 5),
        "sigma": d.time(1000),
        "audio_num_frames": 6,
        "use_cross_timestep": True,
    }


def _first_frame_clean(d: Draw, model: torch.nn.Module) -> dict:
    """One timestep a token, zero in the first of two frames."""
    frame = d.size * d.size // 4
    return {"timestep": torch.cat([torch.zeros(d.batch, frame), d.time(1000)[:, None].expand(-1, frame)], dim=1)}


def _ltx2_image(d: Draw, model: torch.nn.Module) -> dict:
    return _first_frame_clean(d, model) | {"audio_timestep": d.time(1000)}


def _cosmos(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(4, 2, d.size, d.size),
        "timestep": d.time(1),
        "encoder_hidden_states": d.text(5, 16),
        "fps": 30,
    }


def _cosmos_frames(d: Draw, model: torch.nn.Module) -> dict:
    return {"timestep": torch.stack([torch.full((d.batch,), 0.001), d.time(1)], dim=1).view(d.batch, 1, 2, 1, 1)}


def _cosmos3(d: Draw, clean: int = 0, sound: int = 0, action: int = 0) -> dict:
    """One sample, packed: text, two frames (the first ``clean`` given), then sound and action tokens."""
    side, text = d.size // 2, 5
    vision = torch.arange(2 * side * side) + text
    length = text + len(vision) + sound + action
    noisy = vision[clean * side * side :]
    steps = torch.arange(length)
    grid = torch.stack([steps // (side * side), steps // side % side, steps % side])
    kwargs = {
        "input_ids": (d.label(97)[:1] + 7 * torch.arange(text)) % 32,
        "text_indexes": torch.arange(text),
        "position_ids": torch.where(steps < text, steps, text + grid),
        "und_len": text,
        "sequence_length": length,
        "vision_tokens": [d.noise(4, 2, d.size, d.size)[:1]],
        "vision_token_shapes": [(2, side, side)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": noisy,
        "vision_timesteps": d.time(1000)[:1].expand(len(noisy)),
        "vision_noisy_frame_indexes": [torch.arange(clean, 2)],
    }
    for name, count, tokens in (("sound", sound, d.fixed(6, sound)), ("action", action, d.fixed(action, 3))):
        if count:
            start = text + len(vision) + (sound if name == "action" else 0)
            kwargs |= {
                f"{name}_tokens": [tokens[0]],
                f"{name}_token_shapes": [(count, 1, 1)],
                f"{name}_sequence_indexes": torch.arange(count) + start,
                f"{name}_mse_loss_indexes": torch.arange(count) + start,
                f"{name}_timesteps": d.time(1000)[:1].expand(count),
                f"{name}_noisy_frame_indexes": [torch.arange(count)],
            }
    return kwargs | ({"action_domain_ids": [torch.tensor(1)]} if action else {})


def _kandinsky_sample(d: Draw, given: bool = False) -> torch.Tensor:
    """Noisy latents, the latents given as a condition and their mask, channels last."""
    extra = torch.zeros(d.batch, 2, d.size, d.size, 5)
    if given:
        extra[:, 0] = torch.cat([d.fixed(d.size, d.size, 4), torch.ones(d.batch, d.size, d.size, 1)], dim=-1)
    return torch.cat([d.noise(2, d.size, d.size, 4), extra], dim=-1)


def _kandinsky5(d: Draw) -> dict:
    return {
        "hidden_states": _kandinsky_sample(d),
        "encoder_hidden_states": d.text(5, 8),
        "timestep": d.time(1000),
        "pooled_projections": d.text(6),
        "visual_rope_pos": [torch.arange(2), torch.arange(d.size // 2), torch.arange(d.size // 2)],
        "text_rope_pos": torch.arange(5),
    }


def _kandinsky6(d: Draw) -> dict:
    return {
        "hidden_states": _kandinsky_sample(d),
        "encoder_hidden_states": d.text(5, 8),
        "pooled_projections": d.text(6),
        "timestep": d.time(1000),
        "audio_hidden_states": d.noise(6, 4),
    }


def _kandinsky6_sr(d: Draw) -> dict:
    frames = d.size // 4
    parts = d.noise(frames, 8, 8, 4), d.text(frames, 8, 8, 4), torch.ones(d.batch, frames, 8, 8, 1)
    return {"hidden_states": torch.cat(parts, dim=-1), "timestep": d.time(1000)}


def _motif(d: Draw) -> dict:
    return {
        "hidden_states": torch.cat([d.noise(4, 2, d.size, d.size), torch.zeros(d.batch, 5, 2, d.size, d.size)], dim=1),
        "timestep": d.time(1000),
        "encoder_hidden_states": d.text(5, 16),
        "encoder_attention_mask": _ones(d, 5),
    }


def _minimax_h3(d: Draw, given: bool = False) -> dict:
    """Rows: 5 of text, 6 of audio, two frames; with ``given`` the first frame is a condition with a level of its own."""
    frame = d.size * d.size // 4
    length = 11 + 2 * frame
    rows = torch.arange(length)
    levels = torch.zeros(length, dtype=torch.long)
    levels[5:11] = 1
    if given:
        levels[11 : 11 + frame] = 2
    level = 1 - d.time(1)[:1]
    video = (rows >= 11).long()
    side = d.size // 2
    return {
        "hidden_states": d.noise(2 * frame, 16),
        "audio_hidden_states": d.noise(6, 6),
        "encoder_hidden_states": d.text(5, 8),
        "timestep": torch.cat([level, level * 0.9, torch.full((1,), 0.98)])[: 3 if given else 2],
        "timestep_indices": levels,
        "token_tags": torch.where(rows < 5, 1, torch.where(rows < 11, 2, 0)),
        "position_ids": torch.stack([rows, video * (rows // side % side), video * (rows % side)], dim=1).float(),
        "video_indices": rows[11:],
        "audio_indices": rows[5:11],
        "text_indices": rows[:5],
    }


def _minimax_music(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(8, 2 * d.size),
        "timestep": 1 - d.time(1),
        "encoder_hidden_states": d.text(2 * d.size, 16),
    }


def _ace_step(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(2 * d.size, 8),
        "timestep": d.time(1),
        "timestep_r": d.time(1),
        "encoder_hidden_states": d.text(5, 32),
        "context_latents": d.fixed(2 * d.size, 16),
    }


def _stable_audio(d: Draw) -> dict:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        "hidden_states": d.noise(4, d.size),
        "timestep": d.time(1),
        "encoder_hidden_states": d.text(5, 8),
        "global_hidden_states": d.fixed(1, 12),
        "rotary_embedding": get_1d_rotary_pos_embed(4, d.size + 1, use_real=True, repeat_interleave_real=False),
    }


def _stable_audio3(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(8, d.size),
        "timestep": d.time(1),
        "encoder_hidden_states": d.text(5, 16),
        "global_hidden_states": d.fixed(12),
    }


def _longcat(d: Draw) -> dict:
    return {
        "hidden_states": d.noise(d.size, 8),
        "encoder_hidden_states": d.text(5, 16),
        "encoder_attention_mask": _ones(d, 5).bool(),
        "timestep": 1 - d.time(1),
        "attention_mask": _ones(d, d.size).bool(),
        "latent_cond": torch.zeros(d.batch, d.size, 8),
    }


HUNYUAN = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
    num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, guidance_embeds=False, text_embed_dim=16,
    pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
)  # fmt: skip
KANDINSKY = dict(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=6, time_dim=16, patch_size=(1, 2, 2), model_dim=32,
    ff_dim=48, num_visual_blocks=3, axes_dims=(4, 4, 8), visual_cond=True,
)  # fmt: skip

CASES = [
    Case(
        cls="HunyuanVideoTransformer3DModel",
        config=HUNYUAN,
        inputs=_hunyuan,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        result=0,
        extras={"padded text": _padded},
        notes="Blocks return (video, text); single blocks concatenate video then text inside themselves.",
    ),
    Case(
        cls="HunyuanVideo15Transformer3DModel",
        config=dict(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=3, num_refiner_layers=1,
            mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12,
            rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        ),
        inputs=_hunyuan15,
        blocks=("transformer_blocks",),
        result=0,
        extras={"padded text": _padded, "image": lambda d, m: {"image_embeds": d.fixed(3, 12)}},
        notes="Blocks return (video, text); the second stream holds image, glyph and text tokens, those masked out last.",
    ),
    Case(
        cls="HunyuanVideoFramepackTransformer3DModel",
        config=HUNYUAN | dict(has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True),
        inputs=_framepack,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        result=0,
        extras={"padded text": _padded},
        notes="History tokens stand before the noisy ones in the stack and are cut off after it; one row alone passes no mask.",
    ),
    Case(
        cls="LTXVideoTransformer3DModel",
        config=dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=3,
            caption_channels=16,
        ),
        inputs=_ltx,
        blocks=("transformer_blocks",),
        extras={
            "padded text": _padded,
            "timestep a token": _first_frame_clean,
            "video coordinates": lambda d, m: {"video_coords": d.fixed(3, d.size * d.size // 2)},
        },
        notes="Modulation has a token axis: one entry, or one a token.",
    ),
    Case(
        cls="LTX2VideoTransformer3DModel",
        config=dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
            gated_attn=True, cross_attn_mod=True, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
            audio_attention_head_dim=8, audio_cross_attention_dim=16, audio_gated_attn=True, audio_cross_attn_mod=True,
            num_layers=3, rope_type="split", use_prompt_embeddings=False, perturbed_attn=True,
        ),
        inputs=_ltx2,
        blocks=("transformer_blocks",),
        result=0,
        also={"audio_hidden_states": 1},
        extras={
            "padded text": _padded,
            "timestep a token": _ltx2_image,
            "modalities apart": lambda d, m: {"isolate_modalities": True},
            "perturbed attention": lambda d, m: {"spatio_temporal_guidance_blocks": [1]},
        },
        notes="Blocks return (video, audio), both decoded after the stack; neither text stream changes.",
    ),
    Case(
        cls="CosmosTransformer3DModel",
        config=dict(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3, mlp_ratio=2,
            text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False,
            controlnet_block_every_n=1,
        ),
        inputs=_cosmos,
        blocks=("transformer_blocks",),
        extras={
            "timestep a frame": _cosmos_frames,
            "controlnet": lambda d, m: {"block_controlnet_hidden_states": [d.fixed(d.size * d.size // 2, 24)] * 3},
        },
        notes="Blocks take the ControlNet residual and add it in place at their end.",
    ),
    Case(
        cls="Cosmos3OmniTransformer",
        config=dict(
            head_dim=12, hidden_size=24, intermediate_size=48, latent_channel=4, latent_patch_size=2, num_attention_heads=2,
            num_hidden_layers=3, num_key_value_heads=1, patch_latent_dim=16, rope_axes_dim=[2, 2, 2], vocab_size=32,
            sound_gen=True, sound_dim=6, action_gen=True, action_dim=3, num_embodiment_domains=2,
        ),
        inputs=_cosmos3,
        blocks=("layers",),
        hidden="gen_seq",
        result=1,
        batches=False,
        extras={
            "first frame given": lambda d, m: _cosmos3(d, clean=1),
            "sound": lambda d, m: _cosmos3(d, sound=4),
            "action": lambda d, m: _cosmos3(d, action=3),
            "sound and action": lambda d, m: _cosmos3(d, sound=4, action=3),
        },
        notes="One packed sample without a batch axis; layers take and return (text, generated), two dimensions each.",
    ),
    Case(
        cls="Kandinsky5Transformer3DModel",
        config=KANDINSKY | dict(num_text_blocks=1, num_visual_blocks=2),
        inputs=_kandinsky5,
        blocks=("visual_transformer_blocks",),
        hidden="visual_embed",
        extras={"first frame given": lambda d, m: {"hidden_states": _kandinsky_sample(d, given=True)}},
        notes="Attention rounds queries and keys to bfloat16 after the rotary embedding.",
    ),
    Case(
        cls="Kandinsky6Transformer3DModel",
        config=KANDINSKY | dict(
            num_text_blocks=1, in_audio_dim=4, out_audio_dim=4, text_token_padding=True, ca_rope=True, cross_gates=True,
            fix_modulation=True, visual_token_type_num_embeddings=2,
        ),
        inputs=_kandinsky6,
        blocks=("visual_transformer_blocks",),
        hidden="vis",
        result=0,
        also={"aud": 1},
        extras={
            "padded text": lambda d, m: {"encoder_attention_mask": _ones(d, 5, padded=2).bool()},
            "first frame given": lambda d, m: {"hidden_states": _kandinsky_sample(d, given=True)},
            "token types": lambda d, m: {"visual_token_type_ids": torch.tensor([[0, 1]]).expand(d.batch, 2)},
        },
        notes="Fused blocks return (video, audio), both decoded after the stack; without audio the second stays None.",
    ),
    Case(
        cls="Kandinsky6SRTransformer3DModel",
        config=dict(
            in_visual_dim=4, out_visual_dim=4, time_dim=16, patch_size=(1, 1, 1), model_dim=32, ff_dim=48, num_visual_blocks=3,
            axes_dims=(4, 4, 8), nabla_window=(1, 1, 1),
        ),
        inputs=_kandinsky6_sr,
        blocks=("visual_transformer_blocks",),
        notes="No text: the low-resolution latents are the condition. Attention picks its blocks of 64 tokens from the data.",
    ),
    Case(
        cls="MotifVideoTransformer3DModel",
        config=dict(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_single_layers=4,
            num_decoder_layers=2, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=16, image_embed_dim=8,
            rope_axes_dim=(4, 4, 4), enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True,
        ),
        inputs=_motif,
        blocks=("transformer_blocks", "single_transformer_blocks"),
        result=0,
        extras={"padded text": _padded, "image": lambda d, m: {"image_embeds": d.fixed(3, 8)}},
        notes=(
            "The last single blocks are a decoder: they start again from the first block's input and take what the others "
            "made of it in the place of text."
        ),
    ),
    Case(
        cls="MiniMaxH3Transformer3DModel",
        config=dict(
            num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=3, num_refiner_layers=2, ffn_dim=32,
            in_channels=4, audio_in_channels=6, patch_size=(1, 2, 2), text_dim=8, freq_dim=8, time_embed_hidden_dim=24,
            time_embed_dim=16, rope_freq_dim=2,
        ),
        inputs=_minimax_h3,
        blocks=("transformer_blocks",),
        extras={"first frame given": lambda d, m: _minimax_h3(d, given=True)},
        notes="Text, audio and video are rows of one sequence; timesteps are a list of levels, not one a row of the batch.",
    ),
    Case(
        cls="MiniMaxMusic3Transformer1DModel",
        config=dict(
            in_channels=8, condition_dim=16, num_layers=3, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=32,
            rotary_dim=4, fourier_embedding_dim=8,
        ),
        inputs=_minimax_music,
        blocks=("transformer_blocks",),
        notes="The timestep is the first token of the stack, cut off after it; the condition is in the channels.",
    ),
    Case(
        cls="MiniMaxMusic3RVQDepthDecoder",
        config=dict(hidden_size=16, num_layers=2, num_attention_heads=2, intermediate_size=32, audio_vocab_size=8),
        inputs=lambda d: {"inputs_embeds": d.noise(d.size, 16)},
        why_not="A language model that predicts codes one after another, no denoiser.",
    ),
    Case(
        cls="AceStepTransformer1DModel",
        config=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            in_channels=24, audio_acoustic_hidden_dim=8, patch_size=2, rope_theta=10000.0, sliding_window=4,
        ),
        inputs=_ace_step,
        blocks=("layers",),
        extras={"second timestep": lambda d, m: {"timestep_r": d.time(0.5)}},
        notes="Every other block attends through a sliding window; two timesteps make the modulation.",
    ),
    Case(
        cls="StableAudioDiTModel",
        config=dict(
            sample_size=8, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
            num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, time_proj_dim=8,
            global_states_input_dim=12, cross_attention_input_dim=8,
        ),
        inputs=_stable_audio,
        blocks=("transformer_blocks",),
        notes="The timestep with the duration is the first token of the stack, cut off after the projection.",
    ),
    Case(
        cls="StableAudio3DiTModel",
        config=dict(
            io_channels=8, embed_dim=32, depth=3, num_heads=4, cond_token_dim=16, global_cond_dim=12, local_add_cond_dim=5,
            timestep_features_dim=16, ff_mult=2, num_memory_tokens=3,
        ),
        inputs=_stable_audio3,
        blocks=("transformer_blocks",),
        extras={"padded text": _padded, "inpainting": lambda d, m: {"local_add_cond": d.fixed(5, d.size)}},
        notes="Learned memory tokens stand before the audio in the stack; inpainting adds its tokens inside every block.",
    ),
    Case(
        cls="LongCatAudioDiTTransformer",
        config=dict(dit_dim=32, dit_depth=3, dit_heads=4, dit_text_dim=16, latent_dim=8, ff_mult=2.0),
        inputs=_longcat,
        blocks=("blocks",),
        extras={
            "padded text": lambda d, m: {"encoder_attention_mask": _ones(d, 5, padded=2).bool()},
            "padded audio": lambda d, m: {"attention_mask": _ones(d, d.size, padded=2).bool()},
            "latents given": lambda d, m: {"latent_cond": d.fixed(d.size, 8)},
        },
        notes="The stack's input is added to its output once more after the last block.",
    ),
]  # fmt: skip
