"""``magpolicy.compile`` for torch modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from magpolicy import ArgumentError, CompileRequest
from magpolicy.adapter import closest
from magpolicy_torch.blocks._stack import BlockStack
from torch import nn


def compile_module(
    module: nn.Module, request: CompileRequest, find: Callable[[nn.Module], BlockStack] = BlockStack.find
) -> None:
    """Compile ``module`` in place, or the blocks that ``find`` finds in it.

    Raises:
        ArgumentError: a backend or a mode that torch does not know; nothing is compiled.
        AdapterError: the blocks cannot be told.
    """
    check_options(request.options)
    blocks: tuple[nn.Module, ...] = (module,) if request.region == "model" else find(module).blocks
    for block in blocks:
        block.compile(**request.options)


def check_options(options: Mapping[str, Any]) -> None:
    """Complain about options that ``torch.compile`` would not take, before anything is compiled.

    Raises:
        ArgumentError: a backend or a mode that torch does not know.
    """
    backend, mode = options.get("backend"), options.get("mode")
    if isinstance(backend, str):
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ArgumentError(f"backend={backend!r} is none of torch.compile's; {_nearest(backend, known)}")
    if mode is not None:
        from torch._inductor import list_mode_options

        known = list(list_mode_options())
        if mode not in known:
            raise ArgumentError(f"mode={mode!r} is none of inductor's; {_nearest(mode, known)}")


def _nearest(word: str, known: list[str]) -> str:
    near = closest(word, known, 1)
    return f"try {near[0]!r}" if near else f"it has {', '.join(known)}"
