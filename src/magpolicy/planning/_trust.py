"""Whether a run believes the forecasts of a plan that nobody's measurements stand behind.

A forecast goes on in the direction in which the residual moved last. At a computed step it is known whether the residual
really did: with u its change since the residual computed before, and v the change before that, the cosine of u and v tells.
Where residuals do not keep their direction no forecast is better than holding, and the next skips hold.

The forecast's error alone would not do: at the end of a long gap it is often as large as that of holding, on models on which
the forecasts within the gap are worth 5 to 10 dB (docs/explanation/quality.md).
"""

from __future__ import annotations

import math

from attrs import evolve, frozen

LEAST = 0.1
"""Cosine between successive changes of the residual at or below which skips hold. The lab's models have 0.4 to 0.95."""
START = 0.95
"""Flow noise level above which the residual moves in directions of its own; a change since there says nothing."""
ENOUGH = 3
"""So many comparisons in a row that speak for forecasts settle it: each makes the host wait for the device."""


@frozen
class ForecastTrust:
    """What the computed steps of a run said of a stream's forecasts so far; a value, one for each run."""

    holds: bool = False
    """Whether the next skips hold."""
    told: int = 0
    """How many comparisons in a row spoke for forecasts."""
    settled: bool = False
    """Whether nothing more has to be compared."""

    def after(self, cosine: float, *, since: float) -> ForecastTrust:
        """What is known after a computed step.

        Args:
            cosine: between the residual's change since the one computed before, and the change before; nan, where nothing
                moved, counts as 0.
            since: flow noise level of the older of the two residuals the change before was between.
        """
        if since > START:
            return self
        holds = math.isnan(cosine) or cosine <= LEAST
        told = 0 if holds else self.told + 1
        return evolve(self, holds=holds, told=told, settled=told >= ENOUGH)
