"""The expected distance of the latent: one figure that ranks schedules of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import ArgumentError, Calibration, Schedule, expected_distance, expected_errors, flow_sigmas, plan, simulate

STEPS = 10
LEVELS = [1 - i / STEPS for i in range(STEPS)]


def residuals(seed, streams=("cond", "uncond")):
    rng = np.random.default_rng(seed)
    return {name: np.cumsum(rng.normal(size=(STEPS, 5, 3)), axis=0) + rng.normal(size=(5, 3)) for name in streams}


def measured(rows, **settings):
    return Calibration.from_residuals({name: list(values) for name, values in rows.items()}, sigmas=LEVELS, **settings)


masks = st.lists(st.booleans(), min_size=STEPS - 1, max_size=STEPS - 1).map(lambda rest: [True, *rest])
coefficients = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=STEPS, max_size=STEPS)


def forecast_errors(rows, mask, given_):
    """(N, ...) the error that each step's forecast makes, by the residuals themselves."""
    found, kept = np.zeros_like(rows), []
    for i, computes in enumerate(mask):
        if computes:
            kept = [rows[i], *kept][:3]
            continue
        r = [*kept, *([kept[-1]] * 3)]  # what is not there is the same again: its difference is nothing
        c1, c2 = given_[i]
        found[i] = rows[i] - (r[0] + c1 * (r[0] - r[1]) + c2 * (r[1] - r[2]))
    return found


@given(st.integers(0, 30), masks, coefficients, st.sampled_from([None, 1.0, 4.0]))
def test_it_is_that_of_the_residuals_themselves(seed, mask, given_, guidance):
    """From inner products comes what adding up the errors as vectors gives."""
    rows = residuals(seed)
    usable, computed = [], 0
    for computes, pair in zip(mask, given_, strict=True):  # a coefficient needs a residual more than its number
        usable.append(() if computes else pair[: min(max(computed - 1, 0), 2)])
        computed += computes
    whole = [(*pair, 0.0, 0.0)[:2] for pair in usable]
    names = dict.fromkeys(rows, mask)
    schedule = Schedule.from_mask(names, coefficients=dict.fromkeys(rows, usable))
    errors = {name: forecast_errors(values, mask, whole) for name, values in rows.items()}
    share = np.full(STEPS, 1 / STEPS)
    ahead = 1 + np.cumsum(share[::-1])[::-1]
    weights = np.outer(share, share) * (np.minimum.outer(ahead, ahead) + 0.1 * np.eye(STEPS))

    def products(values):
        flat = values.reshape(STEPS, -1)
        return flat @ flat.T / flat.shape[1]

    if guidance is None:
        gram = sum(products(errors[name]) for name in rows) / 2
        length = np.mean(sum(np.diag(products(rows[name])) for name in rows) / 2)
    else:
        combined = guidance * errors["cond"] + (1 - guidance) * errors["uncond"]
        gram = products(combined)
        length = np.mean(np.diag(products(guidance * rows["cond"] + (1 - guidance) * rows["uncond"])))
    found = expected_distance(measured(rows), schedule, guidance=guidance)
    assert found == pytest.approx(math.sqrt(max((weights * gram).sum(), 0.0) / length), rel=1e-6, abs=1e-6)


@given(st.integers(0, 30))
def test_a_full_run_is_on_its_way(seed):
    assert expected_distance(measured(residuals(seed)), Schedule.from_mask([True] * STEPS)) == 0


@given(st.integers(0, 30), st.integers(2, STEPS - 1))
def test_a_plan_is_never_further_off_than_an_even_schedule_that_holds(seed, computed):
    """By the plan's own forecast of what is best; the coefficients it follows are fitted by another weighting."""
    calibration = measured(residuals(seed))
    chosen = plan(calibration, computed=computed, forecast="hold", objective="trajectory")
    even = sorted({0, *np.linspace(1, STEPS - 1, computed - 1).round().astype(int).tolist()})
    mask = [i in even for i in range(STEPS)]
    if sum(mask) == computed:
        assert expected_distance(calibration, chosen) <= expected_distance(calibration, Schedule.from_mask(mask)) + 1e-9


def test_it_needs_no_calibration():
    assert 0 < expected_distance(None, plan(None, steps=20, speedup=2.0)) < 0.05
    rule = simulate("flux.1-dev", steps=20)
    assert expected_distance("flux.1-dev", plan("flux.1-dev", steps=20, computed=rule.computed)) < expected_distance(
        "flux.1-dev", rule
    )


@pytest.mark.parametrize("source", ["wan2.1-t2v-1.3b", "flux.1-dev", None])
@given(st.floats(1, 8))
def test_a_plan_is_judged_at_its_own_noise_levels(source, shift):
    levels = flow_sigmas(STEPS, shift=shift)
    planned = plan(source, sigmas=levels, speedup=2)
    assert expected_distance(source, planned) == expected_distance(source, planned, sigmas=levels)
    assert expected_errors(source, planned) == expected_errors(source, planned, sigmas=levels)


def test_levels_that_a_published_table_cannot_be_read_at_are_taken_for_even_steps():
    schedule = Schedule.from_mask([1, 1, 0, 1, 0], sigmas=[14.6, 6.0, 2.0, 0.7, 0.1])
    assert expected_errors("flux.1-dev", schedule) == expected_errors("flux.1-dev", schedule, steps=5)


def test_of_a_part_of_a_run():
    calibration = measured(residuals(3))
    part = plan(calibration, speedup=2.0, part=(4, STEPS))
    assert 0 < expected_distance(calibration, part) < 1


def test_what_is_not_known_is_infinitely_far():
    narrow = measured(residuals(1), window=1)
    assert expected_distance(narrow, Schedule.from_mask([True, *[False] * (STEPS - 1)])) == math.inf
    assert math.isfinite(expected_distance(narrow, Schedule.from_mask([i % 2 == 0 for i in range(STEPS)])))


def test_a_schedule_of_another_length():
    with pytest.raises(ArgumentError, match="schedule has 4 steps"):
        expected_distance(measured(residuals(0)), Schedule.from_mask([True, False, True, True]), steps=STEPS)
