"""Where the block stacks of vLLM-Omni's models are. Most are found; the table holds what their code does not tell by names."""

from __future__ import annotations

from magpolicy_torch.adapter import BlockStack, StackSpec, StackTable
from torch import nn

TABLE: dict[str, StackSpec] = {}
_STACKS = StackTable(TABLE, package="vllm_omni")


def stack_of(module: nn.Module) -> BlockStack:
    """The stack of ``module``; of a model of vLLM-Omni that has none, all of it.

    Raises:
        AdapterError: it is no model of vLLM-Omni, and its blocks cannot be told; the message says how to describe them.
    """
    return _STACKS.find(module) or BlockStack.whole(module)
