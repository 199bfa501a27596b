"""magpolicy decides which denoising steps of a diffusion model may be skipped.

The core needs numpy, attrs and pluggy; adapters bring the decision into PyTorch loops and hosts. Start with
:func:`simulate` to preview a schedule and :func:`attach` to run it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._moments import StreamMoments
from magpolicy.catalog._presets import Preset, Setting, preset, presets
from magpolicy.planning._safeguard import Replan, Safeguard
from magpolicy.policy._curve import Curve
from magpolicy.policy._decision import Decision
from magpolicy.policy._policy import MagPolicy
from magpolicy.policy._semantics import Semantics, semantics, semantics_names
from magpolicy.run._session import Session
from magpolicy.run._simulate import Sweep, SweepRow, simulate, sweep
from magpolicy.schedule._schedule import Schedule
from magpolicy.schedule._trace import TraceEntry

if TYPE_CHECKING:
    from magpolicy.calibration._file import load_calibration
    from magpolicy.catalog._file import load_preset, save_preset
    from magpolicy.catalog._folder import keep, library
    from magpolicy.hookspecs import hookimpl
    from magpolicy.hosts._attach import AttachRequest, attach
    from magpolicy.hosts._compile import CompileRequest, compile
    from magpolicy.planning._expected import expected_errors
    from magpolicy.planning._plan import plan, trade_off
    from magpolicy.planning._refine import Refined, refine
    from magpolicy.plugin_system._registry import PluginInfo, manager, plugins

__version__ = "0.1.0"

# Imported when first used: pluggy's search for plugins would double what the import costs beyond numpy.
_LATE = {
    "AttachRequest": "hosts._attach",
    "CompileRequest": "hosts._compile",
    "PluginInfo": "plugin_system._registry",
    "attach": "hosts._attach",
    "compile": "hosts._compile",
    "hookimpl": "hookspecs",
    "expected_errors": "planning._expected",
    "keep": "catalog._folder",
    "library": "catalog._folder",
    "load_calibration": "calibration._file",
    "load_preset": "catalog._file",
    "plan": "planning._plan",
    "manager": "plugin_system._registry",
    "plugins": "plugin_system._registry",
    "Refined": "planning._refine",
    "refine": "planning._refine",
    "save_preset": "catalog._file",
    "trade_off": "planning._plan",
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
