"""What an adapter for a host needs of the core, beyond the names of :mod:`magpolicy` itself.

Our own adapters for torch, diffusers and ComfyUI use these names and no others; a stranger's adapter has the same.
docs/how-to/write-a-plugin.md shows one from beginning to end.
"""

from __future__ import annotations

from magpolicy._checks import closest, whole
from magpolicy._errors import require
from magpolicy.calibration._completed import MeasuredPart
from magpolicy.calibration._lessons import can_teach, joined, lesson_of, should_compute_all
from magpolicy.calibration._likeness import ASSUMED, banded_cross
from magpolicy.calibration._prior import PRIOR_SHARE
from magpolicy.catalog._entries import LibraryEntry, entries, entry, forget
from magpolicy.catalog._fitting import calibration_of, check_fits, differences, fits
from magpolicy.catalog._folder import keep_in, presets_in
from magpolicy.catalog._identity import ModelIdentity, config_digest, digest, repo_and_part
from magpolicy.catalog._kept import kept_for, remarks_on_choice
from magpolicy.catalog._learned import learned, remember
from magpolicy.catalog._matching import PresetMatches, named
from magpolicy.files._names import PRESET_ENDINGS, file_name, names_a_file
from magpolicy.planning._stopping import PlanningStopped, stop_planning_when
from magpolicy.planning._target import SPEEDS, speedup_of
from magpolicy.policy._semantics import semantics
from magpolicy.run._alike import decides_by
from magpolicy.run._call import CallDecision, StreamDecision
from magpolicy.run._config import RunConfig
from magpolicy.run._of_a_request import OF_A_REQUEST, asked_of, settings_among
from magpolicy.run._placing import Placement, ScheduleSpan, place
from magpolicy.run._resolve import always_compute, resolve
from magpolicy.run._simulate import simulate_config

__all__ = [
    "ASSUMED",
    "OF_A_REQUEST",
    "PRESET_ENDINGS",
    "PRIOR_SHARE",
    "SPEEDS",
    "CallDecision",
    "LibraryEntry",
    "MeasuredPart",
    "ModelIdentity",
    "Placement",
    "PlanningStopped",
    "PresetMatches",
    "RunConfig",
    "ScheduleSpan",
    "StreamDecision",
    "always_compute",
    "asked_of",
    "banded_cross",
    "calibration_of",
    "can_teach",
    "check_fits",
    "closest",
    "config_digest",
    "decides_by",
    "differences",
    "digest",
    "entries",
    "entry",
    "file_name",
    "fits",
    "forget",
    "joined",
    "keep_in",
    "kept_for",
    "learned",
    "lesson_of",
    "named",
    "names_a_file",
    "place",
    "presets_in",
    "remarks_on_choice",
    "remember",
    "repo_and_part",
    "require",
    "resolve",
    "semantics",
    "settings_among",
    "should_compute_all",
    "simulate_config",
    "speedup_of",
    "stop_planning_when",
    "whole",
]
