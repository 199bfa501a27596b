"""Where the block stacks of diffusers' models are. Most are found; the table holds what their code does not tell by names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

import diffusers
from magpolicy import AdapterError
from magpolicy_torch.blocks._layout import Layout
from magpolicy_torch.blocks._stack import BlockStack
from torch import nn


@frozen
class StackSpec:
    """What has to be told of one class."""

    blocks: str | None = None
    """Its lists in order of execution, where they are not found."""
    interleaved: bool = False
    """The lists take turns, block by block."""
    layout: Layout | tuple[Layout, ...] | None = None
    """Its blocks' arguments and results, where names and the first computed call do not tell; several take turns."""
    beside: Callable[[Any], Iterable[nn.Module]] | None = None
    """Modules that work for the stack alone: on a skip they are left out too."""


TABLE = {
    # Spatial blocks see frames as samples, temporal ones see places as samples.
    "LatteTransformer3DModel": StackSpec(
        blocks="transformer_blocks,temporal_transformer_blocks",
        interleaved=True,
        layout=(Layout("hidden_states"), Layout("hidden_states", swapped=True)),
    ),
    # Tokens come first, samples second.
    "ErnieImageTransformer2DModel": StackSpec(layout=Layout("x", batch=1)),
    # Image blocks are one list of a dictionary of modes; those of text and of the reference run beside them.
    "Flux3Transformer2DModel": StackSpec(blocks="mode_blocks.image,single_transformer_blocks"),
    # The generated tokens follow the understood ones, in arguments and result.
    "Cosmos3OmniTransformer": StackSpec(layout=Layout("gen_seq", text="und_seq", result=1, text_result=0)),
    "RFD4ProteinaTransformer": StackSpec(layout=Layout("values")),
    # Control branches and adapters: their results are added between the blocks. What is added after the last block is outside
    # the stack, and needed.
    "WanVACETransformer3DModel": StackSpec(
        beside=lambda m: () if len(m.blocks) - 1 in m.config.vace_layers else m.vace_blocks,
    ),
    "WanAnimateTransformer3DModel": StackSpec(
        beside=lambda m: () if (len(m.blocks) - 1) % m.config.inject_face_latents_blocks == 0 else m.face_adapter,
    ),
    "ConsisIDTransformer3DModel": StackSpec(
        beside=lambda m: () if (len(m.transformer_blocks) - 1) % m.cross_attn_interval == 0 else m.perceiver_cross_attention,
    ),
}


def find(module: nn.Module) -> BlockStack:
    """The stack of ``module``; of a model of diffusers that has none, all of it.

    Raises:
        AdapterError: it is nobody's known model, and its blocks cannot be told; the message says how to describe them.
    """
    told = next((TABLE[k.__name__] for k in type(module).__mro__ if k.__name__ in TABLE), None)
    try:
        return BlockStack.find(module) if told is None else _as_told(module, told)
    except AdapterError:
        if not type(module).__module__.startswith(diffusers.__name__ + "."):
            raise
        return BlockStack.whole(module)


def _as_told(module: nn.Module, told: StackSpec) -> BlockStack:
    lists = BlockStack.lists(module) if told.blocks is None else list(map(module.get_submodule, told.blocks.split(",")))
    blocks = [block for turn in zip(*lists, strict=True) for block in turn] if told.interleaved else lists
    layout = told.layout
    if isinstance(layout, tuple):
        layout = layout * (len(blocks) // len(layout))
    return BlockStack(blocks, layout=layout, beside=() if told.beside is None else told.beside(module))
