"""The noise levels of flow models."""

from __future__ import annotations

from magpolicy import _checks

MAX_SHIFT = 1000.0  # far above any model's; a larger one is the number of timesteps, or a mistake


def flow_sigmas(steps: int, *, shift: float = 1.0) -> tuple[float, ...]:
    """The noise levels of a flow model's run: shift · s / (1 + (shift - 1) · s), for s = 1, 1 - 1/steps, ..., 1/steps.

    A shift above 1 spends more of the steps on much noise (Esser et al., arXiv 2403.03206, section 5.3.2). Stable
    Diffusion 3 has 3, Wan 3 to 12.

    >>> [round(level, 3) for level in flow_sigmas(4, shift=3)]
    [1.0, 0.9, 0.75, 0.5]

    Args:
        steps: of the run.
        shift: of the model's scheduler, as a number; 1 gives even levels.

    Returns:
        (steps,) the level of each step's evaluation, from 1 down. The 0 at the end, where nothing is evaluated, is left out.

    Raises:
        ArgumentError: ``steps`` or ``shift`` out of range.
    """
    steps = _checks.steps(steps, example="20")
    shift = _checks.number("shift", shift, 1 / MAX_SHIFT, MAX_SHIFT, example="5")
    even = [1 - step / steps for step in range(steps)]
    return tuple([shift * s / (1 + (shift - 1) * s) for s in even])
