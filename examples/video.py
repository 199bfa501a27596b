"""Text to video with guidance, with diffusers' WanPipeline: each branch of guidance has its own residual.

By default with tiny random weights: noise in, noise out, but the schedule, the branches and the report are real.
``--repo Wan-AI/Wan2.1-T2V-1.3B-Diffusers`` is the real thing.
"""

from __future__ import annotations

import argparse
from typing import Any

from diffusers.utils import export_to_video

import diffusers
import magpolicy
import torch


def tiny() -> Any:
    """A WanPipeline of two blocks."""
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    )
    vae = diffusers.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, transformer=transformer.eval(), vae=vae.eval(), scheduler=scheduler
    )


def main() -> None:
    """Generate, and show each branch's schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo")
    parser.add_argument("--prompt", default="a cat")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="video.mp4")
    given = parser.parse_args()
    call: dict[str, Any]
    if given.repo:  # the switch to the real model, whose preset is found
        pipe = diffusers.DiffusionPipeline.from_pretrained(given.repo, torch_dtype=torch.bfloat16).to(given.device)
        preset, call = None, {"prompt": given.prompt}
    else:
        pipe, preset = tiny(), "wan2.1-t2v-1.3b"  # borrowed
        call = {"prompt_embeds": torch.randn(1, 5, 16), "negative_prompt_embeds": torch.zeros(1, 5, 16)}
        call |= {"height": 16, "width": 16, "num_frames": 9, "output_type": "latent"}
    with magpolicy.attach(pipe, preset=preset) as handle:
        frames = pipe(**call, num_inference_steps=given.steps, guidance_scale=5.0).frames
    print(handle.report)
    for stream in handle.report.schedule.streams:
        print(f"{stream:8}", "".join("█" if computes else "·" for computes in handle.report.schedule.stream_mask(stream)))
    if given.repo:
        export_to_video(frames[0], given.output)


if __name__ == "__main__":
    main()
