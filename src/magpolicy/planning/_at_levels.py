"""A source read at the noise levels of a run: measured inner products, or those that the general prior expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from magpolicy import _checks
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._prior import CONSTANT, is_measured, prior_calibration, with_prior
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._source import SourceContent
from magpolicy.policy._curve import Curve
from magpolicy.policy._flow import flow_sigmas


@frozen
class SourceAtLevels:
    """What a source says of one run."""

    calibration: Calibration
    """Inner products of the run's residuals."""
    preset: Preset | None
    """The preset the source is, for its settings."""
    measured: bool
    """Whether the inner products were measured; else the general prior expects them, with norms from the ratios."""
    levels_known: bool
    """Whether the noise levels are those of the run; else flow levels are assumed."""
    expert_step: int | None
    """The evaluation at which a second expert takes over, if one does."""

    @property
    def bound(self) -> Preset | None:
        """The preset whose longest run of skips and leading steps bind a plan: those published with ratios are the rule's."""
        return self.preset if self.measured else None

    @property
    def is_a_guess(self) -> bool:
        """Whether nothing at all is known of the model: neither how its residuals turn nor how long they are."""
        return not is_measured(self.calibration) and self.calibration.provenance.get("norms") == CONSTANT


def at_levels(source: Any, steps: int | None, sigmas: Sequence[float] | None, expert_step: int | None = None) -> SourceAtLevels:
    """The source at the noise levels of a run of ``steps`` steps, or at ``sigmas``; as calibrated by default.

    Args:
        source: anything that a plan is made from.
        steps: evaluations of the run.
        sigmas: or their noise levels.
        expert_step: the evaluation at which a second expert takes over, where it is not the preset's.

    Raises:
        ArgumentError: ``steps`` contradicts ``sigmas``, they do not fit the source, or there is no source and neither of them.
        PresetError: a name or file that is not known.
    """
    content = SourceContent.of(source)
    measured = None if content.calibration is None else content.calibration.resample(steps=steps, sigmas=sigmas)
    levels = _levels(content.curve, steps, sigmas) if measured is None else measured.sigmas
    if expert_step is None and content.preset is not None:
        expert_step = content.preset.expert_step(len(levels), sigmas)
    if measured is not None:
        return SourceAtLevels(with_prior(measured, expert_step=expert_step), content.preset, True, True, expert_step)
    expected = prior_calibration(content.curve, levels=levels, expert_step=expert_step)
    return SourceAtLevels(expected, content.preset, False, sigmas is not None or content.levels_known, expert_step)


def _levels(curve: Curve | None, steps: int | None, sigmas: Sequence[float] | None) -> tuple[float, ...]:
    """Those of a run of which no inner products were measured."""
    levels = _checks.run_levels(steps, sigmas)
    if levels is not None:
        return levels
    if steps is None:
        steps = None if curve is None else curve.steps
    steps = _checks.steps(steps, example="28")
    return flow_sigmas(steps) if curve is None else curve.levels_for(steps)
