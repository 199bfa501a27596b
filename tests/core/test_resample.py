"""Calibrations at other noise levels: laws of the residual's path."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from magpolicy import ArgumentError, Calibration, plan
from magpolicy.testing import strategies

LAWS = settings(max_examples=60, deadline=None)


def smooth(sigmas, window=None):
    """A path known in closed form, at any levels."""
    sigmas = np.asarray(sigmas, dtype=float)
    directions = np.random.default_rng(5).normal(size=(4, 2, 24))
    shapes = np.stack([np.ones_like(sigmas), sigmas, np.sin(3 * sigmas), np.exp(-2 * sigmas)], axis=1)
    rows = {name: [r.reshape(4, 6) for r in shapes @ directions[:, s]] for s, name in enumerate(("cond", "uncond"))}
    return Calibration.from_residuals(rows, sigmas=sigmas.tolist(), window=window)


def levels(steps, shift=1.0):
    even = 1 - np.arange(steps) / steps
    return shift * even / (1 + (shift - 1) * even)


@st.composite
def targets(draw, found, within=True):
    """Levels of another run, falling or not, within the calibrated range or around it."""
    low, high = found.sigmas[-1], found.sigmas[0]
    span = st.floats(low, high) if within else st.floats(0.0001, 1.5)
    drawn = draw(st.lists(span, min_size=1, max_size=12))
    return drawn if draw(st.booleans()) else sorted(drawn, reverse=True)


@LAWS
@given(strategies.calibrations(min_size=2))
def test_at_the_same_levels_nothing_changes(found):
    assert found.resample() is found
    assert found.resample(sigmas=found.sigmas) == found
    assert found.resample(steps=found.steps, sigmas=[*found.sigmas, 0.0]) == found
    with_one_more = found.resample(sigmas=(*found.sigmas, found.sigmas[-1]))
    for name, moments in found.streams.items():
        width = moments.gram.shape[1]
        there = with_one_more.streams[name].gram[: found.steps, :width]
        assert np.allclose(there, moments.gram, equal_nan=True, rtol=1e-12)


@LAWS
@given(st.data())
def test_every_resampled_gram_matrix_is_one_of_some_path(data):
    found = data.draw(strategies.calibrations(min_size=3))
    run = found.resample(sigmas=data.draw(targets(found, within=data.draw(st.booleans()))))
    for name, moments in run.streams.items():
        for p, j, i in itertools.combinations(range(run.steps), 3):
            for value in (run.hold_error(name, j, i), run.forecast_error(name, p, j, i)):
                assert math.isnan(value) or value >= 0
            if not math.isnan(run.forecast_error(name, p, j, i)):
                assert run.forecast_error(name, p, j, i) <= run.hold_error(name, j, i) + 1e-9
        assert np.nanmin(moments.gram[:, 0], initial=0.0) >= 0
        known = ~np.isnan(moments.gram)
        sizes = np.sqrt(np.where(known[:, 0], moments.gram[:, 0], np.inf))
        for i, k in zip(*np.nonzero(known), strict=True):
            assert abs(moments.gram[i, k]) <= sizes[i] * sizes[i - k] * (1 + 1e-9) + 1e-12


@LAWS
@given(st.data())
def test_the_hold_error_between_equal_levels_is_zero_and_levels_outside_are_unknown(data):
    found = data.draw(strategies.calibrations(min_size=4))
    target = data.draw(targets(found, within=False))
    assume(target[-1] > 0)
    run = found.resample(sigmas=[*target, *target])
    half = len(target)
    covered = found.curve.covers(target)
    for i, inside in enumerate(covered):
        for name in run.streams:
            error = run.hold_error(name, i, i)
            assert (error == pytest.approx(0, abs=1e-6)) if inside else math.isnan(error)
            again = run.hold_error(name, i, i + half)
            assert math.isnan(again) or again == pytest.approx(0, abs=1e-5)


@LAWS
@given(st.data())
def test_the_product_of_the_ratios_is_kept(data):
    found = data.draw(strategies.calibrations(min_size=3))
    inner = data.draw(st.lists(st.floats(found.sigmas[-1], found.sigmas[0]), max_size=8))
    target = sorted({found.sigmas[0], found.sigmas[-1], *inner}, reverse=True)
    run = found.resample(sigmas=target)
    for name in found.streams:
        assert np.prod(run.streams[name].ratios) == pytest.approx(np.prod(found.streams[name].ratios), rel=1e-9)


@pytest.mark.parametrize(("have", "want"), [(50, 20), (50, 28), (28, 50), (28, 20)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_smooth_model_is_read_at_other_levels_as_if_calibrated_there(have, want, shift):
    found = smooth(levels(have))
    sigmas = [s for s in levels(want, shift) if s >= found.sigmas[-1]]
    native, run = smooth(sigmas), found.resample(sigmas=sigmas)
    for name in ("cond", "uncond"):
        for j, i in itertools.combinations(range(len(sigmas)), 2):
            if i - j <= 6:
                assert run.hold_error(name, j, i) == pytest.approx(native.hold_error(name, j, i), rel=0.01)
            if j > 0 and i - j <= 3:
                c, true = run.coefficient(name, j - 1, j, i), native.coefficient(name, j - 1, j, i)
                assert c == pytest.approx(true, rel=0.02, abs=0.01)
        # Tokens differ, so that the mean of ratios is not the ratio of means: close, not equal.
        assert run.streams[name].ratios == pytest.approx(native.streams[name].ratios, rel=0.02)
        assert run.streams[name].cosine[1:] == pytest.approx(native.streams[name].cosine[1:], rel=0.25, abs=2e-4)
    a, b = (c.cross["cond", "uncond"] for c in (run, native))
    middle = a.shape[1] // 2, b.shape[1] // 2
    for d in range(-3, 4):
        np.testing.assert_allclose(a[:, middle[0] + d], b[:, middle[1] + d], rtol=1e-3, atol=1e-3)


def test_a_window_is_as_wide_in_noise_level_as_it_was():
    found = smooth(levels(40), window=8)
    coarse, fine = found.resample(steps=20), found.resample(sigmas=np.linspace(1, found.sigmas[-1], 80).tolist())
    for run, steps, least, most in ((coarse, 20, 2, 4), (fine, 80, 10, 16)):
        known = [int((~np.isnan(row)).sum()) - 1 for row in run.streams["cond"].gram[steps // 2 :]]
        assert least <= min(known) <= max(known) <= most


def test_second_order_samplers_and_restarts_are_planned_by_their_levels():
    found = smooth(levels(30))
    heun = [s for level in np.linspace(1, 0.1, 10) for s in (level, level - 0.05)]
    heun[1::2] = [*heun[2::2], 0.1]
    assert plan(found, sigmas=heun, computed=10).errors == pytest.approx([0] * 20, abs=1e-6)
    restart = [*np.linspace(1, 0.2, 9), *np.linspace(0.6, 0.1, 6)]
    assert plan(found, sigmas=restart, computed=8).computed == 8


def test_a_calibration_of_repeated_levels_serves_other_runs_by_the_falling_ones():
    heun = np.repeat(levels(12), 2)
    found = smooth(heun)
    assert found.curve.sigmas == pytest.approx(levels(12))
    run = found.resample(steps=12)
    assert run.sigmas == pytest.approx(levels(12))
    native = smooth(levels(12))
    for j, i in itertools.combinations(range(12), 2):
        assert run.hold_error("cond", j, i) == pytest.approx(native.hold_error("cond", j, i), rel=1e-9)


def test_samples_are_resampled_with_their_mean():
    merged = Calibration.merge([smooth(levels(20)), smooth(levels(20))])
    run = merged.resample(steps=30)
    assert run.merged == 2
    assert np.allclose(run.streams["cond"].each.mean(axis=0), run.streams["cond"].gram, equal_nan=True)


def test_steps_and_sigmas_must_agree():
    with pytest.raises(ArgumentError, match="steps=3 contradicts sigmas with 2"):
        smooth(levels(20)).resample(steps=3, sigmas=[1.0, 0.5])
    with pytest.raises(ArgumentError, match="steps=0"):
        smooth(levels(20)).resample(steps=0)
