"""A schedule: what one run computes and skips at each step, and with which coefficients, as plain data.

A schedule comes from the rule (``simulate``), from a plan, from a mask, or from the trace of a run; wherever it comes from,
it is compared, written down, drawn and followed in the same way. ``_coefficients`` says how the residual of a skipped step
is made from those computed last; ``_trace`` is what a run notes of each decision.

It knows decisions and streams of ``policy/``, and no calibration: what made a schedule is not part of it. Calibrations,
plans, runs and the command line import it.
"""
