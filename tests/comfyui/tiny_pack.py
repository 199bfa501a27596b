"""A node pack for tests: tiny real models, with the prompts and latents that fit them, and a picture of a latent."""

from __future__ import annotations

from typing import Any

from host import models

import torch

_KINDS = sorted(models.TINY)


class _Node:
    FUNCTION = "run"
    CATEGORY = "tests"


class TinyModel(_Node):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"kind": (_KINDS,)}})
    RETURN_TYPES = ("MODEL",)

    def run(self, kind: str) -> tuple[Any]:
        return (models.make(kind),)


class TinyPrompt(_Node):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"kind": (_KINDS,), "seed": ("INT", {"default": 1})}})
    RETURN_TYPES = ("CONDITIONING",)

    def run(self, kind: str, seed: int) -> tuple[Any]:
        return (models.conditioning(kind, seed),)


class TinyLatent(_Node):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"kind": (_KINDS,)}})
    RETURN_TYPES = ("LATENT",)

    def run(self, kind: str) -> tuple[Any]:
        return (models.latent(kind),)


class TinyDecode(_Node):
    """The first latent (of a film, its first frame) as a grey picture."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",)}})
    RETURN_TYPES = ("IMAGE",)

    def run(self, samples: Any) -> tuple[torch.Tensor]:
        latent = samples["samples"].float()
        frame = latent[:, :, 0] if latent.ndim == 5 else latent
        picture = torch.sigmoid(frame.mean(dim=1))[..., None].expand(-1, -1, -1, 3)
        return (picture.repeat_interleave(8, 1).repeat_interleave(8, 2),)


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (TinyModel, TinyPrompt, TinyLatent, TinyDecode)}
