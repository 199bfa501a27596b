"""Image to image with diffusers' FluxImg2ImgPipeline: a strength below 1 is the end of a whole run, and is decided as such.

By default with the demo's small trained weights: a generated digit becomes another one. ``--repo black-forest-labs/FLUX.1-dev
--image photo.png`` is the real thing.
"""

from __future__ import annotations

import argparse

from PIL import Image

import diffusers
import magpolicy
import torch
from text_to_image import SETTINGS, digit, save, shown, tiny


def unpacked(tokens: torch.Tensor) -> torch.Tensor:
    """Packed latents ``(1, 49, 16)`` as the pipeline takes them: ``(1, 4, 14, 14)``."""
    return tokens.view(1, 7, 7, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 14, 14)


def main() -> None:
    """Turn an image into another one, in full and with steps skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo")
    parser.add_argument("--image")
    parser.add_argument("--prompt", default="8")
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="image_to_image.png")
    given = parser.parse_args()
    call = {"num_inference_steps": given.steps, "strength": given.strength}
    if given.repo:  # the switch to the real model
        pipe = diffusers.FluxImg2ImgPipeline.from_pretrained(given.repo, torch_dtype=torch.bfloat16).to(given.device)
        with magpolicy.attach(pipe, speedup=2.0) as handle:
            pipe(given.prompt, image=Image.open(given.image), **call).images[0].save(given.output)
        print(handle.report)
        return

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    text_to_image = tiny()
    with magpolicy.attach(text_to_image, calibrate=True) as handle:
        start = text_to_image(**digit(3), num_inference_steps=given.steps, output_type="latent", generator=generator()).images
        curve = handle.curve
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(4, 4, 4, 4), norm_num_groups=1,
                                  down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                                  shift_factor=0.0, scaling_factor=1.0)  # fmt: skip
    pipe = tiny(diffusers.FluxImg2ImgPipeline, vae)
    call |= {**digit(int(given.prompt)), "image": unpacked(start), "output_type": "latent"}
    full = pipe(**call, generator=generator()).images
    with magpolicy.attach(pipe, curve=curve, **SETTINGS) as handle:
        cached = pipe(**call, generator=generator()).images
    print(handle.report)
    print(f"PSNR {save(given.output, shown(full), shown(cached)):.1f} dB, {given.output}")


if __name__ == "__main__":
    main()
