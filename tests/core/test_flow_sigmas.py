"""The noise levels of flow models: laws of the shift."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import ArgumentError, flow_sigmas

runs = st.integers(1, 200)
shifts = st.floats(0.05, 20)


@given(runs, shifts)
def test_they_fall_from_one_and_end_above_nothing(steps, shift):
    levels = flow_sigmas(steps, shift=shift)
    assert len(levels) == steps
    assert levels[0] == pytest.approx(1)
    assert levels[-1] > 0
    assert all(a > b for a, b in itertools.pairwise(levels))


@given(runs)
def test_without_a_shift_they_are_even(steps):
    assert flow_sigmas(steps) == tuple(1 - i / steps for i in range(steps))


@given(runs, shifts)
def test_a_shift_multiplies_the_ratio_of_noise_to_picture(steps, shift):
    for even, level in list(zip(flow_sigmas(steps), flow_sigmas(steps, shift=shift), strict=True))[1:]:
        assert math.isclose(level / (1 - level), shift * even / (1 - even), rel_tol=1e-6)


@given(runs, shifts)
def test_the_inverse_shift_is_the_run_in_the_mirror(steps, shift):
    there, back = flow_sigmas(steps, shift=shift)[1:], flow_sigmas(steps, shift=1 / shift)[1:]
    assert np.allclose([1 - level for level in reversed(back)], there)


@pytest.mark.parametrize("wrong", [{"steps": 0}, *({"steps": 20, "shift": shift} for shift in (0, math.nan, 0.0009, 1001))])
def test_what_no_run_has_is_an_error(wrong):
    with pytest.raises(ArgumentError, match=f"{list(wrong)[-1]}="):
        flow_sigmas(**wrong)
