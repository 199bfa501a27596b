"""The ranks that share a request: which they are, and what cannot be done on several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve

from magpolicy import AdapterError, ArgumentError, AttachRequest
from magpolicy_torch.adapter import SharedBy
from torch import distributed, nn

_OWN = {
    "get_data_parallel_world_size": "each copy of the model has its own requests (data parallelism)",
    "get_pipeline_parallel_world_size": "each rank has some of the blocks (pipeline parallelism)",
}
"""By the engine's function that counts them: ranks that decide alike only by chance."""


def together(request: AttachRequest, modules: Iterable[nn.Module]) -> AttachRequest:
    """The request, shared by the ranks that the engine has for each of its own requests.

    Raises:
        AdapterError: ranks divide the work in a way that the adapter was not run with.
        ArgumentError: it is to measure, and each rank has one branch of guidance.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return request
    from vllm_omni.diffusion.distributed import parallel_state

    for count, words in _OWN.items():
        if getattr(parallel_state, count)() > 1:
            raise AdapterError(f"{words}, which this adapter was not run with; serve without, or without this cache backend")
    if parallel_state.get_classifier_free_guidance_world_size() > 1:
        request = _measuring_nothing(request)
    group: Any = parallel_state.get_world_group().cpu_group
    return evolve(request, group=SharedBy(modules, group))


def _measuring_nothing(request: AttachRequest) -> AttachRequest:
    if request.calibrate or request.arguments.get("learn"):
        raise ArgumentError(
            "calibrate and learn: each rank has one branch of guidance, and what is measured would mix them; measure without "
            "cfg_parallel_size, and give the file, calibration='model.json'"
        )
    return evolve(request, learn=False, arguments={**request.arguments, "learn": False})
