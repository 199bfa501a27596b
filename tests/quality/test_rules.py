"""The lab's own arithmetic: rules of others as their papers write them, evenly spaced masks, coefficients fitted together."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="the lab compares diffusers models")
pytest.importorskip("skimage", reason="the lab needs the demo extra")

from benchmarks.quality import joint, rules
from benchmarks.quality.methods import uniform_mask

import magpolicy


def test_teacache_adds_up_rescaled_changes_until_the_threshold() -> None:
    rule = rules.Accumulator(threshold=1.0, last=7, polynomial=(2.0, 0.1))  # 2 x + 0.1
    changes = [None, 0.2, 0.1, 0.1, 0.0, 0.45, 0.1, 0.0]
    # sums: -, 0.5, 0.8, 1.1 (computes, back to 0), 0.1, 1.1 (computes), 0.3, and the last step always computes
    assert [rule.computes(c) for c in changes] == [True, False, False, True, False, True, False, True]


def test_easycache_predicts_the_outputs_change_from_the_inputs() -> None:
    rule = rules.Rate(threshold=0.5, warmup=2, last=6)
    assert rule.computes(0.0, 1.0)
    assert rule.computes(1.0, 2.0)
    rule.measured(input_change=1.0, output_change=0.5)  # rate 0.5
    assert not rule.computes(1.0, 2.0)  # 0.25
    assert not rule.computes(0.4, 1.0)  # 0.45
    assert rule.computes(1.0, 2.0)  # 0.70
    assert rule.total == 0.0
    assert not rule.computes(1.0, 2.0)
    assert rule.computes(0.0, 1.0), "the last step"


def test_easycache_computes_until_it_has_a_rate() -> None:
    rule = rules.Rate(threshold=9.0, warmup=0, last=9)
    assert [rule.computes(1.0, 1.0) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("steps", [8, 28, 30])
@pytest.mark.parametrize("ends", [True, False])
def test_uniform_masks_compute_as_many_steps_as_asked(steps: int, ends: bool) -> None:
    for computed in range(3, steps + 1):
        mask = uniform_mask(steps, computed, ends=ends)
        assert sum(mask) == computed
        assert mask[0]
        gaps = np.diff(np.flatnonzero(mask))[1 if ends else 0 :]
        assert max(gaps, default=1) - min(gaps, default=1) <= 1
        assert not ends or (mask[1] and mask[-1])


def calibration_of(residuals: dict[str, np.ndarray], sigmas: list[float]) -> magpolicy.Calibration:
    """From residuals ``(N, D)`` a stream, with every inner product known."""
    count, ones = len(sigmas), (1.0,) * len(sigmas)
    streams, window = {}, count - 1
    for name, rows in residuals.items():
        gram = np.full((count, count), np.nan)
        for back in range(count):
            gram[back:, back] = (rows[back:] * rows[: count - back]).mean(axis=1)
        streams[name] = magpolicy.StreamMoments(gram, ones, (0.0,) * count, (0.0,) * count)
    (first, a), (second, b) = residuals.items()
    cross = np.full((count, 2 * window + 1), np.nan)
    for i in range(count):
        for k in range(count):
            cross[i, window + k - i] = (a[i] * b[k]).mean()
    return magpolicy.Calibration(sigmas=sigmas, streams=streams, cross={(first, second): cross})


SIGMAS = [1 - i / 9 for i in range(9)]
FACTORS = {"cond": 3.0, "uncond": -2.0}
MASK = [True, True, True, False, True, False, False, True, False]


def test_a_second_order_forecast_is_exact_where_residuals_are_quadratic_in_the_step() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(9)[:, None] / 9
    residuals = {s: sum(rng.normal(size=40) * steps**power for power in range(3)) for s in FACTORS}
    calibration = calibration_of(residuals, SIGMAS)
    weights = joint.fit(calibration, MASK, FACTORS, order=2)
    scale = joint.cost(calibration, MASK, joint.fit(calibration, MASK, FACTORS, order=0), FACTORS)
    assert joint.cost(calibration, MASK, weights, FACTORS) < 1e-5 * scale


def test_no_other_coefficients_leave_less_of_the_error() -> None:
    rng = np.random.default_rng(1)
    calibration = calibration_of({s: rng.normal(size=(9, 40)).cumsum(axis=0) for s in FACTORS}, SIGMAS)
    weights = joint.fit(calibration, MASK, FACTORS, order=1, ridge=0.0)
    least = joint.cost(calibration, MASK, weights, FACTORS)
    for stream in FACTORS:
        for step in np.flatnonzero(~np.array(MASK)):
            for change in (-0.05, 0.05):
                other = {s: w.copy() for s, w in weights.items()}
                other[stream][step] += change * np.array([1.0, -1.0])
                assert joint.cost(calibration, MASK, other, FACTORS) > least
