"""What guidance multiplies each stream with, and with it the stream's errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration


def stream_factors(guidance: Any, calibration: Calibration) -> dict[str, float] | None:
    """What each stream is multiplied with: s and 1-s for a guidance scale s, or as a mapping says.

    By default the scale the calibration was made with, where its provenance has it. ``None`` where nothing is known.

    Raises:
        ArgumentError: a scale for other than two streams, or a mapping that leaves one out.
    """
    names = list(calibration.streams)
    if guidance is None:
        guidance = _calibrated_guidance(calibration)
    if guidance is None:
        return None
    if isinstance(guidance, Mapping):
        missing = [name for name in names if name not in guidance]
        if missing:
            left = ", ".join(map(repr, missing))
            raise ArgumentError(f"guidance={_checks._short(dict(guidance))} leaves out {left}; give a factor for each stream")
        return {name: _checks.number(f"guidance[{name!r}]", guidance[name], -np.inf, example="1.0") for name in names}
    scale = _checks.number("guidance", guidance, -np.inf, example="5.0")
    if len(names) == 1:
        return None
    if len(names) != 2:
        raise ArgumentError(
            f"guidance={scale:g} combines two streams, there are {len(names)}; try guidance={{'{names[0]}': ...}}"
        )
    first, second = _conditional_first(names)
    return {first: scale, second: 1.0 - scale}


def _calibrated_guidance(calibration: Calibration) -> float | None:
    scale = calibration.provenance.get("guidance")
    known = len(calibration.streams) == 2 and isinstance(scale, int | float) and not isinstance(scale, bool)
    return scale if known else None


def _conditional_first(names: Sequence[str]) -> tuple[str, str]:
    """The two streams, the conditional one first: as listed, unless the names say otherwise."""
    first, second = names
    swapped = first.lower().startswith(("uncond", "neg")) and not second.lower().startswith(("uncond", "neg"))
    return (second, first) if swapped else (first, second)
