"""What a preset is: a model's curve, and the settings recommended for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import PresetError
from magpolicy.calibration._calibration import Calibration
from magpolicy.policy._curve import Curve
from magpolicy.policy._semantics import semantics as semantics_of


@frozen(kw_only=True)
class Setting:
    """Settings that somebody published for a table, with their source."""

    __module__ = "magpolicy"

    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    kind: str = ""
    semantics: str = ""
    source: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True, hash=False)
class Preset:
    """A curve with the settings recommended for one model.

    ``threshold``, ``max_skips`` and ``retention`` are the recommended settings (``None`` if nobody published any);
    ``settings`` lists all published ones. ``semantics`` names the implementation that the table was made for: pass it on to
    reproduce that implementation's decisions. ``None`` is magpolicy's own rule.
    """

    __module__ = "magpolicy"

    name: str
    curve: Curve
    family: str = ""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    semantics: str | None = None
    aliases: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    source: Mapping[str, Any] = field(factory=dict)
    also_published_in: tuple[Mapping[str, Any], ...] = ()
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(factory=dict)
    expert_boundary: Mapping[str, Any] | None = None
    calibration: Calibration | None = field(default=None, repr=False)
    """The calibration the curve is from, where there is one: plans are then made from it."""

    @property
    def steps(self) -> int:
        """Steps of the calibration run."""
        return self.curve.steps

    @property
    def is_example(self) -> bool:
        """Whether it was published to show a format, in a project's documentation. It is used for what it is named after, and
        suggested for nothing else."""
        return "repo" in self.source and str(self.source.get("path", "")).startswith("docs/")

    def expert_step(self, steps: int, sigmas: Sequence[float] | None = None) -> int | None:
        """First step of the second (low-noise) expert in a run of ``steps``; ``None`` for a model with one.

        With ``sigmas``, the noise level of each step, it counts those at or above the boundary, if that is known. Otherwise
        it counts timesteps at or above the boundary on the shifted schedule (Zehong-Ma/MagCache,
        MagCache4Wan2.2/magcache_generate.py, get_timesteps). If the schedule is not published, the table's index of the switch
        is scaled to ``steps``.
        """
        if self.expert_boundary is None:
            return None
        if sigmas is not None and "boundary" in self.expert_boundary:
            return sum(s >= float(self.expert_boundary["boundary"]) for s in sigmas)
        if "shift" not in self.expert_boundary:
            return round(int(self.expert_boundary["observed_dip_step"]) * steps / self.steps)
        shift, boundary = self.expert_boundary["shift"], self.expert_boundary["boundary"]
        shares = np.linspace(1.0, 0.01, steps + 1)[:-1]
        times = (np.float32(1000) * (shift * shares / (1 + (shift - 1) * shares)).astype(np.float32)).astype(np.int64)
        return int((times >= 1000 * boundary).sum())


def checked(candidate: Preset) -> Preset:
    """A preset from outside with its settings checked.

    Raises:
        PresetError: a setting is out of range.
    """
    try:
        if not isinstance(candidate.name, str) or not candidate.name:
            raise PresetError(f"name={candidate.name!r} must be a text of at least one character")
        if not isinstance(candidate.curve, Curve):
            raise PresetError(f"curve={_checks._short(candidate.curve)} must be a Curve; try Curve(ratios)")
        if candidate.threshold is not None:
            _checks.number("threshold", candidate.threshold, 0, example="0.06")
        if candidate.max_skips is not None:
            _checks.whole("max_skips", candidate.max_skips, 0, example="3")
        if candidate.retention is not None:
            _checks.number("retention", candidate.retention, 0, 1, example="0.2")
        if candidate.semantics is not None:
            semantics_of(candidate.semantics)
    except ValueError as error:
        raise PresetError(f"preset {candidate.name!r}: {error}") from error
    return candidate
