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

    @property
    def bound(self) -> Preset | None:
        """The preset whose longest run of skips and leading steps bind a plan: those published with ratios are the rule's."""
        return self.preset if self.measured else None

    @property
    def is_a_guess(self) -> bool:
        """Whether nothing at all is known of the model: neither how its residuals turn nor how long they are."""
        return not is_measured(self.calibration) and self.calibration.provenance.get("norms") == CONSTANT


def at_levels(source: Any, steps: int | None, sigmas: Sequence[float] | None) -> SourceAtLevels:
    """The source at the noise levels of a run of ``steps`` steps, or at ``sigmas``; as calibrated by default.

    Raises:
        ArgumentError: ``steps`` contradicts ``sigmas``, they do not fit the source, or there is no source and neither of them.
        PresetError: a name or file that is not known.
    """
    content = SourceContent.of(source)
    if content.calibration is not None:
        run = content.calibration.resample(steps=steps, sigmas=sigmas)
        return SourceAtLevels(with_prior(run), content.preset, True, True)
    known = sigmas is not None or content.levels_known
    return SourceAtLevels(_expected(content.curve, steps, sigmas), content.preset, False, known)


def _expected(curve: Curve | None, steps: int | None, sigmas: Sequence[float] | None) -> Calibration:
    levels = _checks.run_levels(steps, sigmas)
    if levels is None:
        if steps is None:
            steps = None if curve is None else curve.steps
        steps = _checks.steps(steps, example="28")
        levels = tuple([1 - i / steps for i in range(steps)]) if curve is None else curve.levels_for(steps)
    return prior_calibration(curve, levels=levels)
