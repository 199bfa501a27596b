"""Which arguments tell a model the time, and which modules are no denoisers: a denoiser is told it at every step."""

from __future__ import annotations

import inspect
import re
from typing import Any

from magpolicy import AdapterError
from magpolicy_torch.blocks._unwrap import own_class, own_name, unwrap

_TIME = re.compile(r"(.*_)?(timesteps?|time|timestep_ratio)|t")
_OTHER_TIMES = ("r",)
"""Names of the time that say nothing by themselves: Wuerstchen's."""
_LIBRARIES = ("diffusers", "transformers")


def tells_time(name: str) -> bool:
    """Whether an argument of this name is the timestep."""
    return _TIME.fullmatch(name) is not None


def denoises(module: Any) -> bool:
    """Whether ``module`` may be a denoiser: its forward takes a timestep, or is neither diffusers' nor transformers' own.

    The others are autoencoders, text and image encoders, safety checkers, adapters and the like. A class of one's own may be
    told the time under any name, or not at all, also one that is derived from theirs and has a forward of its own.
    """
    names = inspect.signature(_forward(module)).parameters if _library(module) else ()
    return not _library(module) or any(tells_time(name) or "timestep" in name or name in _OTHER_TIMES for name in names)


def check_denoises(module: Any) -> None:
    """Refuse what is known to be no denoiser.

    Raises:
        AdapterError: it is not; the message says what to attach to.
    """
    if not denoises(module):
        raise AdapterError(
            f"target={own_name(unwrap(module, peft=True))} is no denoiser: {_library(module)} gives it no timestep, so it has "
            "no steps to skip; attach to the pipeline, or to the model in it that denoises: magpolicy.attach(pipe), or "
            "magpolicy.attach(pipe.transformer) or (pipe.unet)"
        )


def _forward(module: Any) -> Any:
    return getattr(own_class(unwrap(module, peft=True)), "forward", None)


def _library(module: Any) -> str:
    """The library that wrote its forward, of those whose models say if they are told the time; else empty."""
    name = str(getattr(_forward(module), "__module__", "")).partition(".")[0]
    return name if name in _LIBRARIES else ""
