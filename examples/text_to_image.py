"""Text to image with diffusers' FluxPipeline: in full, and with steps skipped.

By default with the demo's small trained weights: the "prompt" is a digit. ``--repo black-forest-labs/FLUX.1-dev`` is the
real thing.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from PIL import Image

import diffusers
import magpolicy
import torch
from magpolicy_demo import model as demo

SETTINGS: dict[str, Any] = {"threshold": 0.2, "max_skips": 2, "retention": 0.15}


def tiny(kind: type = diffusers.FluxPipeline, vae: Any = None) -> Any:
    """The pipeline around the demo's transformer; prompts are embeddings."""
    pipe = kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=demo.load(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def digit(label: int) -> dict[str, Any]:
    """What conditions the tiny pipeline."""
    one_hot = torch.nn.functional.one_hot(torch.tensor([label]), demo.CHANNELS).float()
    return {"prompt_embeds": one_hot[:, None], "pooled_prompt_embeds": one_hot, "height": 112, "width": 112}


def shown(tokens: torch.Tensor) -> np.ndarray:
    """Packed latents of the tiny pipeline as an image in [0, 1]."""
    return (demo.unpatchify(tokens)[0].clamp(-1, 1) / 2 + 0.5).numpy()


def save(path: str, full: np.ndarray, cached: np.ndarray) -> float:
    """Both side by side; returns the PSNR of one against the other."""
    picture = Image.fromarray((np.concatenate([full, cached], axis=1) * 255).round().astype(np.uint8))
    picture.resize((picture.width * 8, picture.height * 8), Image.Resampling.NEAREST).save(path)
    return float(-10 * np.log10(max(float(((full - cached) ** 2).mean()), 1e-12)))


def main() -> None:
    """Generate twice from one seed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo")
    parser.add_argument("--prompt", default="3")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="text_to_image.png")
    given = parser.parse_args()

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(given.seed)

    if given.repo:  # the switch to the real model
        pipe = diffusers.DiffusionPipeline.from_pretrained(given.repo, torch_dtype=torch.bfloat16).to(given.device)
        with magpolicy.attach(pipe, speedup=2.0) as handle:
            pipe(given.prompt, num_inference_steps=given.steps, generator=generator()).images[0].save(given.output)
        print(handle.report)
        return
    pipe, call = tiny(), {**digit(int(given.prompt)), "num_inference_steps": given.steps, "output_type": "latent"}
    with magpolicy.attach(pipe, calibrate=True) as handle:  # the run in full measures the curve
        full = pipe(**call, generator=generator()).images
        curve = handle.curve
    with magpolicy.attach(pipe, curve=curve, **SETTINGS) as handle:
        cached = pipe(**call, generator=generator()).images
    print(handle.report)
    print(f"PSNR {save(given.output, shown(full), shown(cached)):.1f} dB, {given.output}")


if __name__ == "__main__":
    main()
