"""magpolicy decides which denoising steps of a diffusion model may be skipped.

The core needs numpy, attrs and pluggy; adapters bring the decision into PyTorch loops and hosts. Start with
:func:`simulate` to preview a schedule and :func:`attach` to run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magpolicy._calibration import Calibration, StreamMoments
from magpolicy._curve import Curve
from magpolicy._decision import Decision
from magpolicy._errors import (
    AdapterError,
    ArgumentError,
    MagPolicyError,
    MissingExtraError,
    PluginWarning,
    PresetError,
    PresetWarning,
    RunError,
)
from magpolicy._policy import MagPolicy
from magpolicy._presets import Preset, Setting, preset, presets
from magpolicy._safeguard import Replan, Safeguard
from magpolicy._schedule import Schedule
from magpolicy._semantics import Semantics, semantics, semantics_names
from magpolicy._session import Session, TraceEntry
from magpolicy._simulate import Sweep, SweepRow, simulate, sweep

if TYPE_CHECKING:
    from magpolicy._attach import AttachRequest, attach
    from magpolicy._calibration_file import load_calibration
    from magpolicy._compile import CompileRequest, compile
    from magpolicy._expected import expected_errors
    from magpolicy._library import keep, library
    from magpolicy._plan import plan, trade_off
    from magpolicy._plugins import PluginInfo, manager, plugins
    from magpolicy._preset_file import load_preset, save_preset
    from magpolicy._refine import Refined, refine
    from magpolicy.hookspecs import hookimpl

__version__ = "0.1.0"

# Imported when first used: pluggy's search for plugins would double what the import costs beyond numpy.
_LATE = {
    "AttachRequest": "_attach",
    "CompileRequest": "_compile",
    "PluginInfo": "_plugins",
    "attach": "_attach",
    "compile": "_compile",
    "hookimpl": "hookspecs",
    "expected_errors": "_expected",
    "keep": "_library",
    "library": "_library",
    "load_calibration": "_calibration_file",
    "load_preset": "_preset_file",
    "plan": "_plan",
    "manager": "_plugins",
    "plugins": "_plugins",
    "Refined": "_refine",
    "refine": "_refine",
    "save_preset": "_preset_file",
    "trade_off": "_plan",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"magpolicy.{_LATE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "AdapterError",
    "ArgumentError",
    "AttachRequest",
    "Calibration",
    "CompileRequest",
    "Curve",
    "Decision",
    "MagPolicy",
    "MagPolicyError",
    "MissingExtraError",
    "PluginInfo",
    "PluginWarning",
    "Preset",
    "PresetError",
    "PresetWarning",
    "Refined",
    "Replan",
    "RunError",
    "Safeguard",
    "Schedule",
    "Semantics",
    "Session",
    "Setting",
    "StreamMoments",
    "Sweep",
    "SweepRow",
    "TraceEntry",
    "__version__",
    "attach",
    "compile",
    "expected_errors",
    "hookimpl",
    "keep",
    "library",
    "load_calibration",
    "load_preset",
    "manager",
    "plan",
    "plugins",
    "preset",
    "presets",
    "refine",
    "save_preset",
    "semantics",
    "semantics_names",
    "simulate",
    "sweep",
    "trade_off",
]
