"""Where the block stacks of diffusers' models are. Most are found; the table holds what their code does not tell by names."""

from __future__ import annotations

import diffusers
from magpolicy import AdapterError
from magpolicy_torch.adapter import BlockStack, Layout, StackSpec, StackTable
from torch import nn

TABLE = {
    # Spatial blocks see frames as samples, temporal ones see places as samples.
    "LatteTransformer3DModel": StackSpec(
        "transformer_blocks,temporal_transformer_blocks",
        (Layout("hidden_states"), Layout("hidden_states", swapped=True)),
        interleaved=True,
    ),
    # Tokens come first, samples second.
    "ErnieImageTransformer2DModel": StackSpec(layout=Layout("x", batch=1)),
    # Image blocks are one list of a dictionary of modes; those of text and of the reference run beside them.
    "Flux3Transformer2DModel": StackSpec("mode_blocks.image,single_transformer_blocks"),
    # The generated tokens follow the understood ones, in arguments and result.
    "Cosmos3OmniTransformer": StackSpec(layout=Layout("gen_seq", text="und_seq", result=1, text_result=0)),
    "RFD4ProteinaTransformer": StackSpec("transformer_layers", layout=Layout("values")),
    # A list of this name is found where it holds several blocks only.
    "T5FilmDecoder": StackSpec("decoders"),
    # Control branches and adapters: their results are added between the blocks. What is added after the last block is outside
    # the stack, and needed.
    "WanVACETransformer3DModel": StackSpec(
        side_branches=lambda m: () if len(m.blocks) - 1 in m.config.vace_layers else m.vace_blocks,
    ),
    "WanAnimateTransformer3DModel": StackSpec(
        side_branches=lambda m: () if (len(m.blocks) - 1) % m.config.inject_face_latents_blocks == 0 else m.face_adapter,
    ),
    "ConsisIDTransformer3DModel": StackSpec(
        side_branches=lambda m: (
            () if (len(m.transformer_blocks) - 1) % m.cross_attn_interval == 0 else m.perceiver_cross_attention
        ),
    ),
}
_STACKS = StackTable(TABLE, package=diffusers.__name__)


def has_stack(module: nn.Module) -> bool:
    """Whether blocks are found in ``module``."""
    try:
        return _STACKS.find(module) is not None
    except AdapterError:
        return False


def stack_of(module: nn.Module) -> BlockStack:
    """The stack of ``module``; of a model of diffusers that has none, all of it.

    Raises:
        AdapterError: it is no model of diffusers, and its blocks cannot be told; the message says how to describe them.
    """
    return _STACKS.find(module) or BlockStack.whole(module)
