"""Whether forecasts are believed: what computed steps say of them, and what the next skips use.

This is a design with its laws tested, and no run consults it yet: sessions have the safeguard alone.

A forecast goes on in the direction in which the residual moved last. At a computed step it is known whether the residual
really did: with u its change since the residual computed before, and v the change before that, the cosine of u and v tells. It
follows from what is measured there anyway, the errors of a forecast and of holding. Where residuals do not keep their
direction the next skips hold, so that a plan from a calibration that is wrong for a model costs little more than holding does.

The forecast's error alone would not do: at the end of a long gap it is often as large as that of holding, on models on which
the forecasts within the gap are worth 5 to 10 dB (docs/explanation/quality.md).
"""

from __future__ import annotations

import math

from attrs import evolve, frozen

from magpolicy.schedule._coefficients import Coefficients

LEAST = 0.1
"""Cosine between successive changes of the residual at or below which skips hold. The lab's models have 0.4 to 0.95."""
START = 0.95
"""Flow noise level above which the residual moves in directions of its own; a change since there says nothing."""


@frozen
class ForecastTrust:
    """What the computed steps of a run said of its forecasts so far; a value, one for each run."""

    latest: float | None = None
    """The cosine at the last computed step that said something; ``None``: there was none."""
    cautious: bool = False
    """Whether skips hold as long as no step has said anything."""

    def after(self, cosine: float, *, since: float = 0.0) -> ForecastTrust:
        """What is known after a computed step.

        Args:
            cosine: as :func:`persistence` tells it; nan, where nothing moved, counts as 0.
            since: flow noise level of the older of the two residuals the change before was between.
        """
        if since > START:
            return self
        return evolve(self, latest=0.0 if math.isnan(cosine) else cosine)

    @property
    def holds(self) -> bool:
        """Whether the next skips hold."""
        return self.cautious if self.latest is None else self.latest <= LEAST

    def coefficients(self, planned: Coefficients) -> Coefficients:
        """What a skip planned with these coefficients uses."""
        return () if self.holds else planned


def persistence(*, forecast: float, hold: float, coefficient: float, moved: float) -> float:
    """The cosine between the residual's change since the one computed last, and the change before, from three errors.

    Args:
        forecast: relative error of forecasting the computed residual with one coefficient.
        hold: relative error of the residual computed before it as it is.
        coefficient: that of the forecast.
        moved: length of the change before, over the length of the computed residual.

    Returns:
        -1 to 1; nan where nothing moved, or the coefficient is 0.
    """
    along = coefficient * moved
    if not hold * along or not math.isfinite(forecast):
        return math.nan
    return max(-1.0, min(1.0, (hold * hold + along * along - forecast * forecast) / (2 * hold * along)))
