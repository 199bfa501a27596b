# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from ._errors import (
    AdapterError,
    ArgumentError,
    LibraryWarning,
    MagPolicyError,
    MissingExtraError,
    PlanWarning,
    PluginWarning,
    PresetError,
    PresetWarning,
    RunError,
    UnknownArgumentError,
)
from ._version import __version__
from .calibration._calibration import Calibration
from .calibration._file import load_calibration
from .calibration._moments import StreamMoments
from .catalog._file import load_preset, save_preset
from .catalog._folder import keep, library
from .catalog._listing import presets
from .catalog._matching import preset
from .catalog._presets import Preset, Setting
from .hookspecs import hookimpl
from .hosts._attach import AttachRequest, attach
from .hosts._compile import CompileRequest, compile
from .hosts._detach import attached, detach
from .planning._expected import expected_distance, expected_errors
from .planning._plan import plan, trade_off
from .planning._refine import Refined, refine
from .planning._safeguard import Replan, Safeguard
from .plugin_system._registry import PluginInfo, manager, plugins
from .policy._curve import Curve
from .policy._decision import Decision
from .policy._flow import flow_sigmas
from .policy._policy import MagPolicy
from .policy._semantics import Semantics, semantics, semantics_names
from .run._session import Session
from .run._simulate import Sweep, SweepRow, simulate, sweep
from .schedule._file import load_schedule
from .schedule._schedule import Schedule
from .schedule._trace import TraceEntry

__all__ = [
    "AdapterError",
    "ArgumentError",
    "AttachRequest",
    "Calibration",
    "CompileRequest",
    "Curve",
    "Decision",
    "LibraryWarning",
    "MagPolicy",
    "MagPolicyError",
    "MissingExtraError",
    "PlanWarning",
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
    "UnknownArgumentError",
    "__version__",
    "attach",
    "attached",
    "compile",
    "detach",
    "expected_distance",
    "expected_errors",
    "flow_sigmas",
    "hookimpl",
    "keep",
    "library",
    "load_calibration",
    "load_preset",
    "load_schedule",
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
