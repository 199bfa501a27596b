"""Compiled models: what skips blocks has to stand outside of what is compiled.

So a model that was compiled as a whole is run with its blocks compiled one by one, by the same compiler with the same options.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from magpolicy_comfyui._block_stacks import block_names, plain
from torch import nn

# Per compiled model, its compiled blocks: compiling takes long and is done once.
_blocks: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()


@contextmanager
def by_blocks(model: Any) -> Iterator[None]:
    """Inside, ``model.diffusion_model`` is the plain one with compiled blocks, if it was compiled as a whole and has blocks.

    Args:
        model: a ``BaseModel``.
    """
    compiled = model.diffusion_model
    original = plain(compiled)
    if original is compiled:
        yield
        return
    blocks = _blocks.get(compiled)
    if blocks is None:
        names = block_names(original)
        blocks = _blocks[compiled] = {name: _like(compiled, original.get_submodule(name)) for name in names}
    if not blocks:  # all of it is skipped, from outside as it is
        yield
        return
    before = {name: original.get_submodule(name) for name in blocks}
    try:
        model.diffusion_model = original
        for name, block in blocks.items():
            _put(original, name, block)
        yield
    finally:
        for name, block in before.items():
            _put(original, name, block)
        model.diffusion_model = compiled


def _like(compiled: nn.Module, block: nn.Module) -> nn.Module:
    """``block``, compiled as ``compiled`` was."""
    context = getattr(compiled, "dynamo_ctx", None)
    result = torch.compile(block) if context is None else context(block)
    assert isinstance(result, nn.Module)
    return result


def _put(root: nn.Module, name: str, block: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, block)
