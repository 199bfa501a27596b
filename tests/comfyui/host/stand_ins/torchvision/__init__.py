"""The little of torchvision that ComfyUI touches on the way to a diffusion model. For tests only."""

from torchvision import models, ops, transforms

__version__ = "0"
__all__ = ["models", "ops", "transforms"]
