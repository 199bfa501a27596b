"""The demo's model as a pipeline of diffusers: ``pipe("0123456789").images``. It knows nothing of magpolicy."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

import diffusers
import torch
from magpolicy_demo import model as demo
from torch import Tensor


class DigitsPipeline(diffusers.DiffusionPipeline):
    """Draws handwritten digits: one picture of 28 x 28 for each digit in the prompt, with classifier-free guidance."""

    def __init__(
        self, transformer: diffusers.FluxTransformer2DModel, scheduler: diffusers.FlowMatchEulerDiscreteScheduler
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str = "0123456789",
        num_inference_steps: int = 28,
        guidance_scale: float = 2.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate.

        Args:
            prompt: the digits, whatever stands between them.
            guidance_scale: 1 is without guidance.
            output_type: ``"pil"``, ``"np"`` ``(count, 28, 28, 1)`` in [0, 1], or ``"latent"`` ``(count, 49, 16)``.

        Raises:
            ValueError: there is no digit in the prompt.
        """
        labels = torch.tensor([int(letter) for letter in prompt if letter in "0123456789"], device=self.device)
        if not len(labels):
            raise ValueError(f"prompt={prompt!r} has no digit; try 0123456789")
        shape = (len(labels), demo.GRID**2, demo.CHANNELS)
        latents = torch.randn(shape, generator=generator).to(self.device, self.transformer.dtype)
        self.scheduler.set_timesteps(sigmas=demo.sigmas_for(num_inference_steps)[:-1], device=self.device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            velocity = self._velocity(latents, timestep, labels, guidance_scale)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        made = latents if output_type == "latent" else self._decoded(latents, output_type)
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def _velocity(self, latents: Tensor, timestep: Tensor, labels: Tensor, scale: float) -> Tensor:
        sigma = (timestep / self.scheduler.config.num_train_timesteps).expand(len(latents)).to(latents)
        with self.transformer.cache_context("cond"):
            cond = demo.velocity(self.transformer, latents, sigma, labels)
        if scale == 1:
            return cond
        with self.transformer.cache_context("uncond"):
            uncond = demo.velocity(self.transformer, latents, sigma, torch.full_like(labels, demo.NO_CLASS))
        return uncond + scale * (cond - uncond)

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        images = (demo.unpatchify(latents.float()).clamp(-1, 1) / 2 + 0.5).cpu().numpy()[..., None]
        return images if output_type == "np" else self.numpy_to_pil(images)


def load() -> DigitsPipeline:
    """The pipeline with the trained weights, ready for inference on the CPU."""
    pipe = DigitsPipeline(demo.load(), diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe
