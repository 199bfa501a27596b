"""torch.compile for models and pipelines, in place."""

from __future__ import annotations

from typing import Any

from magpolicy import CompileRequest
from magpolicy_diffusers._block_stacks import stack_of
from magpolicy_diffusers._pipeline import models_of
from magpolicy_torch.adapter import compile_module


def compile_model(target: Any, request: CompileRequest) -> Any:
    """Compile a model, or each denoiser of a pipeline; returns ``target``.

    Raises:
        ArgumentError: a backend or a mode that torch does not know; nothing is compiled.
        AdapterError: the blocks cannot be told.
    """
    for module in models_of(target):
        compile_module(module, request, stack_of)
    return target
