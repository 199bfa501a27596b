"""torch.compile by ComfyUI's own wrapper, block by block: what is skipped then stands outside of what is compiled."""

from __future__ import annotations

from typing import Any

from magpolicy import AdapterError
from magpolicy_comfyui._stacks import block_names, plain


def compile_model(patcher: Any, *, mode: str, backend: str, fullgraph: bool, dynamic: bool) -> Any:
    """A clone of ``patcher`` whose blocks are compiled when it is sampled; a U-Net is compiled as a whole.

    Compiling replaces what was compiled on the clone before.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = patcher.clone()
    try:
        names = block_names(plain(clone.get_model_object("diffusion_model")))
    except AdapterError:
        names = []
    keys = [f"diffusion_model.{name}" for name in names] or ["diffusion_model"]
    set_torch_compile_wrapper(clone, backend=backend, mode=mode, fullgraph=fullgraph, dynamic=dynamic, keys=keys)
    return clone
