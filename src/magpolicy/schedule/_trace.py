"""What was decided in a run, entry by entry, and the same as rows of a schedule."""

from __future__ import annotations

from attrs import frozen

from magpolicy.policy._decision import Decision
from magpolicy.schedule._coefficients import Coefficients


@frozen
class TraceEntry:
    """What was decided for one stream at one evaluation."""

    __module__ = "magpolicy"

    step: int
    """Position in the run."""
    stream: str
    sigma: float | None
    """Noise level, if known."""
    decision: Decision
    accumulated_ratio: float
    """Product of the ratios since the last computed step, after this decision."""
    accumulated_error: float
    """Error the rule tested: what reusing the residual here is modelled to cost; 0 where the rule had no say."""
    skips: int
    """Consecutive skips, after this decision."""
    coefficients: Coefficients = ()
    """How a skip forecasts its residual, as in :attr:`magpolicy.Schedule.coefficients`."""
