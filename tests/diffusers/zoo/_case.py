"""How a transformer class of diffusers is built tiny, called, and (told by reading its code) where its block stack is."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import seeds
from attrs import field, frozen

import diffusers
import torch

Kwargs = dict[str, Any]


@frozen
class Row:
    """One sample of a batch: what its noise and its condition are drawn from."""

    noise: Any = 0
    text: Any = 0


@frozen
class Draw:
    """Draws the inputs of one call. A row of a batch is bit-equal to the same row drawn alone."""

    rows: tuple[Row, ...] = (Row(),)
    level: float = 0.7
    """Noise level, 1 to 0."""
    size: int = 8
    """Latent height and width, or what else makes the number of tokens: 8 or 12."""

    @property
    def batch(self) -> int:
        return len(self.rows)

    def noise(self, *shape: int) -> torch.Tensor:
        """Normal, of shape ``(batch, *shape)``: the noisy sample."""
        return torch.stack([_normal(("noise", row.noise, shape), shape) for row in self.rows])

    def text(self, *shape: int) -> torch.Tensor:
        """Normal, of shape ``(batch, *shape)``: what differs between conditions. Several of one shape are equal."""
        return torch.stack([_normal(("text", row.text, shape), shape) for row in self.rows])

    def label(self, classes: int) -> torch.Tensor:
        """Whole numbers of shape ``(batch,)`` that differ between conditions."""
        return torch.tensor([zlib.crc32(repr(row.text).encode()) % classes for row in self.rows])

    def fixed(self, *shape: int) -> torch.Tensor:
        """Normal, of shape ``(batch, *shape)``, every row the same whatever the noise and the condition."""
        return torch.stack([_normal(("fixed", shape), shape) for _ in self.rows])

    def time(self, scale: float = 1000.0) -> torch.Tensor:
        """The timestep, float32 of shape ``(batch,)``: the noise level times ``scale``."""
        return torch.full((self.batch,), self.level * scale)


def _normal(key: Any, shape: Sequence[int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(repr(key).encode())))


Extra = Callable[[Draw, torch.nn.Module], Kwargs]


@frozen(kw_only=True)
class Case:
    """One class. What is said of its stack is told by reading its code, not by asking the adapter."""

    cls: str
    """Name of the class in ``diffusers``."""
    config: Mapping[str, Any]
    """Arguments of its constructor: as tiny as it gets, at least two blocks in every list of the stack."""
    inputs: Callable[[Draw], Kwargs]
    """Keyword arguments of a call (without ``return_dict``)."""
    blocks: tuple[str, ...] = ()
    """Paths of the lists that make up the stack, in order of execution; empty: it has none that could be skipped."""
    hidden: str = "hidden_states"
    """Argument of the first block's forward that holds the image tokens (by name, however it is passed)."""
    result: int | None = None
    """Place of the image tokens in the last block's result; ``None``: it returns a bare tensor."""
    text: Literal["", "prefix", "suffix"] = ""
    """Where the last block's result holds text tokens that the first block's ``hidden`` has not."""
    also: Mapping[str, int] = field(factory=dict)
    """Further streams that leave the stack and are used after it (audio): the first block's argument, the last one's place."""
    interleaved: bool = False
    """The lists take turns; what the first block takes as ``(batch * frames, places, channels)`` the last one returns as
    ``(batch * places, frames, channels)``."""
    conditioned: bool = True
    """Whether it takes a timestep and a condition."""
    sized: bool = True
    """Whether its output grows with the size."""
    batches: bool = True
    """Whether several samples go in one call as rows of a batch."""
    extras: Mapping[str, Extra] = field(factory=dict)
    """Further arguments worth testing, by a readable name: ControlNet residuals, hints, IP adapter, per-token timesteps …"""
    why_not: str = ""
    """Where ``blocks`` is empty or the class is no denoiser: the reason, one sentence."""
    notes: str = ""
    """What is peculiar about its stack, one or two sentences."""

    @functools.cached_property
    def kind(self) -> type[torch.nn.Module]:
        return transformer_classes().get(self.cls) or getattr(diffusers, self.cls)

    def make(self, seed: int = 0) -> torch.nn.Module:
        """A fresh model with random weights, none of them zero (a zero-initialised gate would hide a wrong residual)."""
        seeds.seed(seed)
        model = self.kind(**self.config).eval().requires_grad_(False)
        self.fill(model)
        for parameter in model.parameters():
            if parameter.numel() > 1 and not parameter.abs().any():
                torch.nn.init.normal_(parameter, std=0.05)
        return model

    def fill(self, model: torch.nn.Module) -> None:
        """Draw what the class leaves as uninitialised memory, before that is looked at: it may be zero or not."""

    def call(self, model: torch.nn.Module, draw: Draw, *extras: str) -> list[torch.Tensor]:
        """The tensors the model returns."""
        kwargs = self.inputs(draw)
        for name in extras:
            kwargs |= self.extras[name](draw, model)
        with torch.no_grad():
            return tensors(model(**kwargs))

    def stack(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The blocks, in order of execution."""
        lists = [model.get_submodule(path) for path in self.blocks]
        return [block for part in (zip(*lists, strict=True) if self.interleaved else lists) for block in part]


@functools.cache
def transformer_classes() -> dict[str, type[torch.nn.Module]]:
    """Every model class defined below ``diffusers.models.transformers``, by name."""
    import diffusers.models.transformers as home

    from diffusers import ModelMixin

    found = {}
    for info in pkgutil.walk_packages(home.__path__, home.__name__ + "."):
        module = importlib.import_module(info.name)
        kinds = [k for k in vars(module).values() if inspect.isclass(k) and issubclass(k, ModelMixin)]
        found |= {kind.__name__: kind for kind in kinds if kind.__module__ == module.__name__}
    return found


def tensors(result: Any) -> list[torch.Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Mapping):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in tensors(part)]
    return [t for part in vars(result).values() for t in tensors(part)] if hasattr(result, "__dict__") else []
