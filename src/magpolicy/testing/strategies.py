"""Hypothesis strategies for ratios, curves and settings as they occur."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from magpolicy._curve import Curve


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


def settings() -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments ``threshold``, ``max_skips`` and ``retention``."""
    return st.fixed_dictionaries(
        {
            "threshold": st.one_of(st.just(0.0), st.floats(0.0, 0.5)),
            "max_skips": st.integers(0, 8),
            "retention": st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0]),
        }
    )
