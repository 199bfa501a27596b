"""Where the block stacks of vLLM-Omni's models are. Most are found; the table holds what their code does not tell by names."""

from __future__ import annotations

from magpolicy_torch.adapter import BlockStack, Layout, StackSpec, StackTable
from torch import nn

TABLE: dict[str, StackSpec] = {
    # Refiners beside them have the same kinds of blocks, and lists of such names.
    "BooguImageTransformer2DModel": StackSpec(
        "double_stream_layers,single_stream_layers",
        (Layout("img_hidden_states", text="instruct_hidden_states"), Layout("hidden_states")),
    ),
    # Text is called c; the single blocks take it before the sound, in one tensor.
    "AuKTransformer": StackSpec(layout=Layout("x", text="c")),
}
_STACKS = StackTable(TABLE, package="vllm_omni")


def stack_of(module: nn.Module) -> BlockStack:
    """The stack of ``module``; of a model of vLLM-Omni that has none, all of it.

    Raises:
        AdapterError: it is no model of vLLM-Omni, and its blocks cannot be told; the message says how to describe them.
    """
    return _STACKS.find(module) or BlockStack.whole(module)
