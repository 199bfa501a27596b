"""Tiny models as the engine loads them: folders of diffusers pipelines, with tokenizers that its pipelines can read."""

from __future__ import annotations

from pathlib import Path
from pipes import saved

import transformers

import diffusers
import torch


def flux(folder: Path) -> Path:
    """FLUX, 4 blocks."""
    saved.flux(folder)
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    transformers.T5TokenizerFast(vocab=marks + [(chr(c), -2.0) for c in range(33, 121)], extra_ids=0).save_pretrained(
        folder / "tokenizer_2"
    )
    letters = [chr(c) for c in (*range(97, 123), *range(48, 58))]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def wan(folder: Path) -> Path:
    """Wan2.1, 2 blocks."""
    return saved.wan(folder)


def wan_two_experts(folder: Path) -> Path:
    """Wan2.2: the same with a second expert, of other weights."""
    pipe = diffusers.WanPipeline.from_pretrained(saved.wan(folder))
    torch.manual_seed(5)
    second = diffusers.WanTransformer3DModel.from_config(pipe.transformer.config)
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.5)
    pipe.save_pretrained(folder)
    return folder
