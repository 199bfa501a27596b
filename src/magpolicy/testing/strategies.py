"""Hypothesis strategies for ratios, curves, calibrations and settings as they occur."""

from __future__ import annotations

from typing import Any

import numpy as np

from magpolicy.calibration._calibration import Calibration
from magpolicy.policy._curve import Curve
from magpolicy.testing._hypothesis import st


def ratios(min_size: int = 1, max_size: int = 60) -> st.SearchStrategy[list[float]]:
    """Magnitude ratios of one run: mostly near 1, sometimes far from it."""
    near, far = st.floats(0.85, 1.15), st.floats(0.3, 3.0)
    return st.lists(st.one_of(near, near, near, far), min_size=min_size, max_size=max_size)


@st.composite
def curves(draw: st.DrawFn, *, min_size: int = 2, max_size: int = 60, streams: int = 2) -> Curve:
    """Curves of one to ``streams`` streams, with measured or assumed noise levels."""
    size = draw(st.integers(min_size, max_size))
    names = draw(st.sampled_from([["single"], ["cond", "uncond"], ["cond", "ref", "uncond"]][: max(1, streams)]))
    values = {name: draw(ratios(size, size)) for name in names}
    if draw(st.booleans()):
        return Curve(values)
    grid = draw(st.lists(st.integers(1, 10_000), min_size=size, max_size=size, unique=True))
    return Curve(values, sigmas=[level / 10_000 for level in sorted(grid, reverse=True)])


@st.composite
def calibrations(
    draw: st.DrawFn, *, min_size: int = 2, max_size: int = 24, streams: int = 2, window: int | None = None
) -> Calibration:
    """Calibrations of residuals that move along a smooth path, more or less noisy, at uneven noise levels."""
    size = draw(st.integers(min_size, max_size))
    names = draw(st.sampled_from([["single"], ["cond", "uncond"]][: max(1, streams)]))
    grid = draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size, unique=True))
    sigmas = np.array(sorted(grid, reverse=True)) / 1000
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = draw(st.sampled_from([0.0, 0.01, 0.3]))
    shapes = np.stack([np.ones_like(sigmas), sigmas, sigmas**2, np.sin(draw(st.floats(0.5, 9.0)) * sigmas)], axis=1)
    residuals = {
        name: [row.reshape(4, 6) + noise * random.normal(size=(4, 6)) for row in shapes @ random.normal(size=(4, 24))]
        for name in names
    }
    width = draw(st.integers(1, size - 1)) if window is None and size > 1 else window
    return Calibration.from_residuals(residuals, sigmas=sigmas.tolist(), window=width)


def settings() -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments ``threshold``, ``max_skips`` and ``retention``."""
    return st.fixed_dictionaries(
        {
            "threshold": st.one_of(st.just(0.0), st.floats(0.0, 0.5)),
            "max_skips": st.integers(0, 8),
            "retention": st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0]),
        }
    )
