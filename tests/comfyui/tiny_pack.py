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


class TinyLoadable(_Node):
    """A Wan small enough, and with the figures that ComfyUI does not read off a file left as they are."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("MODEL",)

    def run(self) -> tuple[Any]:
        return (models.make("WAN21_T2V", dim=128, num_heads=1, text_dim=4096, freq_dim=256, text_len=512),)


class TinyPrompt(_Node):
    _WIDTH = ("INT", {"default": 0, "max": 8192})
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"kind": (_KINDS,), "seed": ("INT", {"default": 1})}, "optional": {"width": cls._WIDTH}}
    )
    RETURN_TYPES = ("CONDITIONING",)

    def run(self, kind: str, seed: int, width: int = 0) -> tuple[Any]:
        made = models.conditioning(kind, seed)
        if width:
            made[0][0] = torch.randn(1, 7, width, generator=torch.Generator().manual_seed(seed))
        return (made,)


class TinyLatent(_Node):
    INPUT_TYPES = classmethod(lambda cls: {"required": {"kind": (_KINDS,)}})
    RETURN_TYPES = ("LATENT",)

    def run(self, kind: str) -> tuple[Any]:
        return (models.latent(kind),)


class TinyStart(_Node):
    """In the place of nodes that start a film from pictures."""

    _SIDE = ("CONDITIONING",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {"kind": (_KINDS,), "positive": cls._SIDE, "negative": cls._SIDE}})
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT", "INT")

    def run(self, kind: str, positive: Any, negative: Any) -> tuple[Any, Any, Any, int]:
        return positive, negative, models.latent(kind), 0


class TinyDecode(_Node):
    """The first latent (of a film, its first frame) as a grey picture."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"samples": ("LATENT",)}})
    RETURN_TYPES = ("IMAGE",)

    def run(self, samples: Any) -> tuple[torch.Tensor]:
        latent = samples["samples"].float()
        frame = latent[:, :, 0] if latent.ndim == 5 else latent
        picture = torch.sigmoid(frame.mean(dim=1))[..., None].expand(-1, -1, -1, 3)
        return (picture.repeat_interleave(8, 1).repeat_interleave(8, 2),)


NODE_CLASS_MAPPINGS = {c.__name__: c for c in (TinyModel, TinyLoadable, TinyPrompt, TinyLatent, TinyStart, TinyDecode)}
