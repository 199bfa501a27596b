"""Whether forecasts are believed: what computed steps say of them, and what the next skips use.

At a computed step the true residual is known, and with it two errors: that of the forecast which a skip there would have used, and
that of holding. Where forecasts do not do clearly better than holding, the next skips hold. So a plan from a calibration that is
wrong for a model costs what holding costs, and little more; one that is right is left alone.

Values only: :class:`ForecastTrust` is what was seen so far, and nothing here asks for the plan or the run.
"""

from __future__ import annotations

import math

from attrs import frozen

from magpolicy.schedule._coefficients import Coefficients

GAIN = 0.97
"""Share of the error of holding below which a forecast's error counts as clearly better."""
MEMORY = 0.5
"""What is left of earlier squared errors at each computed step."""


@frozen
class ForecastTrust:
    """The errors measured at a run's computed steps, faded."""

    forecast: float = 0.0
    """Sum of the squared relative errors of forecasts, each earlier one counting half of the next."""
    hold: float = 0.0
    """The same of holding."""
    latest: bool = True
    """Whether the forecast was clearly better at the last computed step that said something."""

    def after(self, forecast: float, hold: float) -> ForecastTrust:
        """What is known after a computed step.

        Args:
            forecast: relative error that the forecast would have had there; nan counts as infinite.
            hold: relative error of the last residual as it is; where both are 0 the step says nothing.
        """
        if forecast == hold == 0.0:
            return self
        squared = math.inf if math.isnan(forecast) else forecast * forecast
        latest = forecast < GAIN * hold
        if not math.isfinite(squared):  # one such step is forgotten as any other
            return ForecastTrust(self.forecast + hold * hold, MEMORY * self.hold + hold * hold, latest=False)
        return ForecastTrust(MEMORY * self.forecast + squared, MEMORY * self.hold + hold * hold, latest)

    @property
    def holds(self) -> bool:
        """Whether the next skips hold: at the last computed step, or over those before, forecasts were not clearly better."""
        return not self.latest

    def coefficients(self, planned: Coefficients) -> Coefficients:
        """What a skip planned with these coefficients uses."""
        return () if self.holds else planned
