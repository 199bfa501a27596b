"""The entry point: what magpolicy's plugin manager loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import magpolicy

if TYPE_CHECKING:
    from magpolicy_torch.host._handle import Handle


@magpolicy.hookimpl
def attach(target: Any, request: magpolicy.AttachRequest) -> Handle | None:
    """Attach to a ``torch.nn.Module``; anything else is somebody else's."""
    torch = sys.modules.get("torch")  # whoever made a module has imported it
    if torch is None or not isinstance(target, torch.nn.Module):
        return None
    from magpolicy_torch.host._handle import Handle

    return Handle.attach(target, request)


@magpolicy.hookimpl
def attached(target: Any) -> list[Handle] | None:
    """The handle on a ``torch.nn.Module``."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(target, torch.nn.Module):
        return None
    from magpolicy_torch.host._handle import Handle

    handle = Handle.on(target)
    return [] if handle is None else [handle]


@magpolicy.hookimpl(trylast=True)  # a host that has the model knows published presets too
def preset_for(target: Any) -> list[magpolicy.Preset] | None:
    """The user's calibrations of a module; ``None`` if there are none, or it is no module."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(target, torch.nn.Module):
        return None
    from magpolicy.adapter import kept_for
    from magpolicy_torch.host._handle import identity_of_module
    from magpolicy_torch.host._told_time import check_denoises

    check_denoises(target)
    return list(kept_for(identity_of_module(target))) or None


@magpolicy.hookimpl
def compile(target: Any, request: magpolicy.CompileRequest) -> Any:
    """Compile a ``torch.nn.Module``, or the blocks of its stack."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(target, torch.nn.Module):
        return None
    from magpolicy_torch.host._compile import compile_module

    compile_module(target, request)
    return target
