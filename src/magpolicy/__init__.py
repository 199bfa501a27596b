"""magpolicy decides which denoising steps of a diffusion model may be skipped.

The core needs numpy, attrs and pluggy; adapters bring the decision into PyTorch loops and hosts. Start with
:func:`simulate` to preview a schedule and :func:`attach` to run it.
"""

from __future__ import annotations

from magpolicy._attach import AttachRequest, attach
from magpolicy._curve import Curve
from magpolicy._decision import Decision
from magpolicy._errors import (
    AdapterError,
    ArgumentError,
    MagPolicyError,
    MissingExtraError,
    PluginWarning,
    PresetError,
    RunError,
)
from magpolicy._plugins import PluginInfo, manager, plugins
from magpolicy._policy import MagPolicy
from magpolicy._preset_file import load_preset, save_preset
from magpolicy._presets import Preset, Setting, preset, presets
from magpolicy._schedule import Schedule
from magpolicy._semantics import Semantics, semantics, semantics_names
from magpolicy._session import Session, TraceEntry
from magpolicy._simulate import Sweep, SweepRow, simulate, sweep
from magpolicy.hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = [
    "AdapterError",
    "ArgumentError",
    "AttachRequest",
    "Curve",
    "Decision",
    "MagPolicy",
    "MagPolicyError",
    "MissingExtraError",
    "PluginInfo",
    "PluginWarning",
    "Preset",
    "PresetError",
    "RunError",
    "Schedule",
    "Semantics",
    "Session",
    "Setting",
    "Sweep",
    "SweepRow",
    "TraceEntry",
    "__version__",
    "attach",
    "hookimpl",
    "load_preset",
    "manager",
    "plugins",
    "preset",
    "presets",
    "save_preset",
    "semantics",
    "semantics_names",
    "simulate",
    "sweep",
]
