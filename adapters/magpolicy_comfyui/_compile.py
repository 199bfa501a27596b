"""torch.compile by ComfyUI's own wrapper, block by block: what is skipped then stands outside of what is compiled."""

from __future__ import annotations

import contextlib
from typing import Any

from magpolicy import AdapterError
from magpolicy_comfyui._block_stacks import block_names, plain


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
            names = block_names(plain(patcher.get_model_object("diffusion_model")))
    keys = [f"diffusion_model.{name}" for name in names] or ["diffusion_model"]
    set_torch_compile_wrapper(patcher, backend=backend, keys=keys, **options)
    return patcher
