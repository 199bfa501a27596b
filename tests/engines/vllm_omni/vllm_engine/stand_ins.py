"""What stands in where vLLM-Omni 0.30 has nothing for a CPU. All other code of the engine, and the models, are the real ones.

- :class:`CpuPlatform`: the engine detects CUDA, ROCm, NPU, XPU and MUSA, and has no platform for a CPU. This one answers its
  questions (which device, how much memory, no inductor, no peak of memory).
- The choice of a method of ``SDPAImpl``, the engine's own attention by ``scaled_dot_product_attention``. Its base class chooses
  one by the platform; here it is the method of CUDA, which calls PyTorch alone.
- ``silu_and_mul``, one small operator of vLLM's compiled code, written in PyTorch.
- vLLM without its compiled code, under the name of its build for CPUs, ``0.30.0+cpu``, by which it tells its platform
  (fetch.py makes that name). Triton is not there either. A processor with AMX would have it look for kernels of that code, so
  PyTorch is made to say that there is none.
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

_EMPTY = {"torchvision", "torchaudio", "compressed_tensors"}


class _Named(type):
    """The class of empty classes: whatever is asked of one is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] not in _EMPTY:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        class Empty(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return _Named(name, (), {})

        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


_C = torch.library.Library("_C", "FRAGMENT")


def _silu_and_mul(out: torch.Tensor, given: torch.Tensor) -> None:
    gate, up = given.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def install() -> None:
    """Before the engine is imported."""
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    sys.meta_path.append(_Empty())  # the last to be asked: what is installed is found before
    from vllm_omni import platforms

    platforms._current_omni_platform = _platform()
    from vllm_omni.diffusion.attention.backends.sdpa import SDPAImpl

    SDPAImpl.forward = SDPAImpl.forward_cuda
    torch.cpu._is_amx_tile_supported = lambda: False
    _C.define("silu_and_mul(Tensor! out, Tensor input) -> ()")
    _C.impl("silu_and_mul", _silu_and_mul, "CPU")


def _platform() -> Any:
    from vllm.platforms.interface import PlatformEnum
    from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

    class CpuPlatform(OmniPlatform):
        _omni_enum, _enum = OmniPlatformEnum.OOT, PlatformEnum.CPU
        device_type = device_name = "cpu"
        dispatch_key, dist_backend, device_control_env_var = "CPU", "gloo", "CPU_VISIBLE_DEVICES"
        get_diffusion_attn_backend_cls = classmethod(
            lambda cls, *_, **__: "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"
        )
        supports_torch_inductor = is_available = classmethod(lambda cls: False)
        get_torch_device = classmethod(lambda cls, local_rank=None: torch.device("cpu"))
        get_device_count = classmethod(lambda cls: 1)
        set_device = synchronize = reset_peak_memory_stats = classmethod(lambda cls, *_: None)
        max_memory_reserved = max_memory_allocated = get_current_memory_usage = classmethod(lambda cls, *_: 0)
        get_free_memory = classmethod(lambda cls, device=None: 2**30)
        get_device_memory = classmethod(lambda cls, device=None: (2**30, 2**31))

    return CpuPlatform()
