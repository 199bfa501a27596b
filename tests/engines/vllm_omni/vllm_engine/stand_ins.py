"""What stands in where vLLM-Omni 0.30 has nothing for a CPU. All other code of the engine, and the models, are the real ones.

- :class:`CpuPlatform`: the engine detects CUDA, ROCm, NPU, XPU and MUSA, and has no platform for a CPU. This one answers its
  questions (which device, how much memory, no inductor, no peak of memory).
- :class:`CpuSDPABackend`: the engine's own attention by ``scaled_dot_product_attention``. The base class chooses a method by
  the platform; this chooses the method of CUDA, which calls PyTorch alone.
- vLLM without its compiled code, under the name of its build for CPUs, ``0.30.0+cpu``, by which it tells its platform
  (fetch.py makes that name). Triton is not there either.
- ``torchvision``, if it is not installed: PyTorch's builds for CPUs on package registries lack it. vLLM imports it for reading
  pictures; nothing here reads any. A module whose names are empty classes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        class Empty(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def install() -> None:
    """Before the engine is imported."""
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Empty())
    from vllm_omni import platforms

    platforms._current_omni_platform = _platform()


def _platform() -> Any:
    from vllm.platforms.interface import PlatformEnum
    from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

    class CpuPlatform(OmniPlatform):
        _omni_enum, _enum = OmniPlatformEnum.OOT, PlatformEnum.CPU
        device_type = device_name = "cpu"
        dispatch_key, dist_backend, device_control_env_var = "CPU", "gloo", "CPU_VISIBLE_DEVICES"
        get_diffusion_attn_backend_cls = classmethod(lambda cls, *_, **__: f"{__name__}.CpuSDPABackend")
        supports_torch_inductor = is_available = classmethod(lambda cls: False)
        get_torch_device = classmethod(lambda cls, local_rank=None: torch.device("cpu"))
        get_device_count = classmethod(lambda cls: 1)
        set_device = synchronize = reset_peak_memory_stats = classmethod(lambda cls, *_: None)
        max_memory_reserved = max_memory_allocated = get_current_memory_usage = classmethod(lambda cls, *_: 0)
        get_free_memory = classmethod(lambda cls, device=None: 2**30)
        get_device_memory = classmethod(lambda cls, device=None: (2**30, 2**31))

    return CpuPlatform()


def __getattr__(name: str) -> Any:
    if name != "CpuSDPABackend":
        raise AttributeError(name)
    from vllm_omni.diffusion.attention.backends.sdpa import SDPABackend, SDPAImpl

    class Impl(SDPAImpl):
        forward = SDPAImpl.forward_cuda

    class CpuSDPABackend(SDPABackend):
        get_impl_cls = staticmethod(lambda: Impl)

    globals()[name] = CpuSDPABackend
    return CpuSDPABackend
