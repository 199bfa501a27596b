"""Compiled models: what skips blocks has to stand outside of what is compiled.

A model is compiled by ComfyUI's own wrapper, block by block. One that was compiled as a whole by another node is run with its
blocks compiled one by one, by the same compiler with the same options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from magpolicy import AdapterError
from magpolicy_comfyui._block_stacks import block_names
from magpolicy_torch.adapter import unwrap
from torch import nn

# Per compiled model, its compiled blocks: compiling takes long and is done once.
_blocks: WeakKeyDictionary[nn.Module, dict[str, nn.Module]] = WeakKeyDictionary()


def compile_model(patcher: Any, *, region: str = "blocks", backend: Any = "inductor", **options: Any) -> Any:
    """``patcher``, compiled when it is sampled: its blocks, or all of a U-Net or with ``region="model"``.

    Compiling replaces what was compiled on it before.

    Args:
        patcher: a ``ModelPatcher``.
        region: ``"blocks"`` or ``"model"``.
        backend: of ``torch.compile``.
        options: ``torch.compile``'s ``mode``, ``options``, ``fullgraph`` and ``dynamic``.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    names = []
    if region == "blocks":
        with contextlib.suppress(AdapterError):
            names = block_names(patcher.get_model_object("diffusion_model"))
    keys = [f"diffusion_model.{name}" for name in names] or ["diffusion_model"]
    set_torch_compile_wrapper(patcher, backend=backend, keys=keys, **options)
    return patcher


@contextlib.contextmanager
def by_blocks(model: Any) -> Iterator[None]:
    """Inside, ``model.diffusion_model`` is the plain one with compiled blocks, if it was compiled as a whole and has blocks.

    Args:
        model: a ``BaseModel``.
    """
    compiled = model.diffusion_model
    original = unwrap(compiled)
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
