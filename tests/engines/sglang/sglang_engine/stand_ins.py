"""What stands in where SGLang 0.5.23 has nothing for a CPU. All other code of the engine, and its models, are the real ones.

- ``triton``, ``sgl_kernel`` and ``flashinfer``, kernels for GPUs: modules in which everything can be imported, and nothing
  does anything. The engine imports them wherever it runs; on its platform for CPUs it calls PyTorch instead.
- ``torchvision``, ``imageio_ffmpeg`` and ``IPython``, if they are not installed: likewise. They read pictures, write films and
  show both in notebooks; nothing here does.
- Three operators of ``sgl_kernel`` for CPUs (scale and shift, with a norm, with a residual): the engine calls them on CPUs, and
  they come as compiled code. Here they are PyTorch.
- ``torch.compile`` of the engine's small functions is off: compiling them takes minutes on a CPU.
- :class:`Residency`: who moves models between devices. It does nothing; there is one device.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any

from torch.nn import functional

import torch
from torch import Tensor

_ABSENT = ("triton", "sgl_kernel", "flashinfer", "torchvision", "imageio_ffmpeg", "IPython")
# PyTorch and transformers look for these packages once; they have to find out before the stand-ins are there.
_BEFORE = ("torch._dynamo", "torch.utils.flop_counter", "torch._functorch.aot_autograd", "torch._inductor.config")


class _Anything:
    """Whatever is imported: a base class, a decorator, a constant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else _Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __mro_entries__(self, bases: Any) -> tuple[type]:
        return (object,)

    def __getitem__(self, key: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class _Module(types.ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        found = name.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def install() -> None:
    """Before the engine is imported."""
    for name in (*_BEFORE, "transformers.utils.import_utils"):
        importlib.import_module(name)
    torch._dynamo.config.disable = True
    sys.meta_path.append(_Finder(tuple(name for name in _ABSENT if importlib.util.find_spec(name) is None)))
    _operators()
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")


def _operators() -> None:
    define("fused_scale_shift_cpu(Tensor x, Tensor scale, Tensor shift, float c) -> Tensor", _scale_shift)
    given = "Tensor? w, Tensor? b, Tensor scale, Tensor shift, str kind, float eps"
    define(f"fused_norm_scale_shift_cpu(Tensor x, {given}) -> Tensor", _norm_scale_shift)
    name = "fused_scale_residual_norm_scale_shift_cpu"
    define(f"{name}(Tensor residual, Tensor x, Tensor? gate, {given}) -> (Tensor, Tensor)", _residual_norm_scale_shift)


def define(schema: str, function: Any) -> None:
    """Make an operator of ``sgl_kernel``."""
    _LIBRARY.define(schema)
    _LIBRARY.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor, c: float) -> Tensor:
    return x * (c + scale) + shift


def _norm_scale_shift(x: Tensor, w: Any, b: Any, scale: Tensor, shift: Tensor, kind: str, eps: float) -> Tensor:
    shape, wide = x.shape[-1:], x.float()
    normed = functional.layer_norm(wide, shape, w, b, eps) if kind == "layer" else functional.rms_norm(wide, shape, w, eps)
    return (normed * (1 + scale) + shift).to(x.dtype)


def _residual_norm_scale_shift(
    residual: Tensor, x: Tensor, gate: Any, w: Any, b: Any, scale: Tensor, shift: Tensor, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    whole = residual + (x if gate is None else x * gate)
    return _norm_scale_shift(whole, w, b, scale, shift, kind, eps), whole


class Residency:
    """Leaves models where they are."""

    class state:  # noqa: N801  (the engine's name)
        stage_name = None

    def component_name_for_module(self, module: Any, default: str) -> str:
        return default

    def begin_use(self, use: Any, module: Any = None) -> None:
        pass

    def finish_active_use(self, *args: Any, **kwargs: Any) -> None:
        pass
