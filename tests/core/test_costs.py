"""What previews and decisions cost, in calls of functions and in memory held, which are the same on any machine.

The bounds are about a sixth above what was counted; checking the values of every step, or copying every row, exceeds them.
"""

import gc
import sys
import tracemalloc

import numpy as np
import pytest

import magpolicy
from magpolicy import plan
from magpolicy.calibration._prior import prior_calibration
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._target import PlanTarget

RATIOS = tuple(1 - 0.002 * i for i in range(50))
RULE = {"threshold": 0.12, "max_skips": 4, "retention": 0.2}


def sweep(count):
    return magpolicy.sweep(RATIOS, thresholds=[i / 250 for i in range(1, count + 1)], max_skips=[2], retentions=[0.2])


def session():
    with magpolicy.Session(RATIOS, **RULE) as run:
        for _ in RATIOS:
            run.decide()
            run.commit()


def calls(act):
    """Calls of functions, in Python and C, of the second time: the first fills caches."""
    act()
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def blocks(act):
    """Blocks of memory that the result holds."""
    act()
    gc.collect()
    before = sys.getallocatedblocks()
    held = act()
    gc.collect()
    after = sys.getallocatedblocks()
    del held
    return after - before


def test_a_preview_takes_two_calls_a_step_and_one_table():
    assert calls(lambda: magpolicy.simulate(RATIOS, **RULE)) < 720
    assert blocks(lambda: magpolicy.simulate(RATIOS, **RULE)) < 160


def test_a_setting_of_a_sweep_is_its_decisions_and_little_more():
    assert calls(lambda: sweep(30)) - calls(lambda: sweep(10)) < 20 * 420
    assert blocks(lambda: sweep(30)) - blocks(lambda: sweep(10)) < 20 * 60


def test_a_decision_of_a_session_takes_few_calls():
    assert calls(session) < 50 * 45


@pytest.mark.parametrize("forecast", ["linear", "calibrated"])
def test_a_preview_with_forecasts_asks_once_a_skip(forecast, monkeypatch):
    from magpolicy.calibration._forecast import Linear, Measured

    asked = []
    for kind in (Linear, Measured):
        coefficients = kind.coefficients
        monkeypatch.setattr(kind, "coefficients", lambda *args, f=coefficients: asked.append(args) or f(*args))
    found = magpolicy.Calibration.from_residuals(
        {"a": [[[1.0, 0.1 * i]] for i in range(1, 13)]}, sigmas=[1 - i / 12 for i in range(12)]
    )
    schedule = magpolicy.simulate(found, threshold=0.5, max_skips=3, retention=0.2, forecast=forecast)
    assert len(asked) == schedule.skipped > 0


@pytest.mark.parametrize(("objective", "most"), [("latent", 7_000), ("trajectory", 240_000)])
def test_a_plan_of_fifty_steps_evaluates_a_bounded_number_of_schedules(objective, most):
    sigmas = np.linspace(1, 1 / 50, 50)
    shapes = np.stack([np.ones(50), sigmas, np.sin(5 * sigmas), np.exp(-9 * sigmas)], axis=1)
    random = np.random.default_rng(3)
    rows = {name: [r.reshape(4, 8) for r in shapes @ random.normal(size=(4, 32))] for name in ("cond", "uncond")}
    found = magpolicy.Calibration.from_residuals(rows, sigmas=sigmas.tolist())
    assert calls(lambda: magpolicy.plan(found, speedup=3.0, objective=objective)) < most


def long_run(steps, **target):
    levels = [1 - i / steps for i in range(steps)]
    return PlanRequest(source=prior_calibration(None, levels=levels, streams=("cond", "uncond")), target=PlanTarget(**target))


def test_a_plan_of_many_steps_takes_little_memory():
    """Tables of all gaps would take more than 600 MB for 200 steps."""
    request = long_run(200, speedup=2.0)
    tracemalloc.start()
    try:
        problem = request.problem()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert problem.longest_gap == 6 * 2 + 6


@pytest.mark.parametrize("target", [{"speedup": 2.0}, {"computed": 14}, {"error": 0.1}], ids=str)
def test_in_a_run_of_usual_length_any_gap_may_be_had(target):
    assert long_run(40, **target).problem().longest_gap == 40


@pytest.mark.parametrize(
    ("settings", "longest"), [({"error": 0.1}, 60), ({"speedup": 30.0}, 60), ({"speedup": 3.0}, 24)], ids=str
)
def test_a_gap_is_bounded_by_what_the_target_leaves(settings, longest):
    assert long_run(60, **settings).problem().longest_gap == longest


@pytest.mark.parametrize(("steps", "starts"), [(80, 3), (81, 1)])
def test_of_many_steps_one_start_is_improved(steps, starts, monkeypatch):
    tried = []

    def improve(computed, cost, allowed, count):
        tried.append(computed)
        return tuple(computed), cost(computed)

    monkeypatch.setattr("magpolicy.planning._planner.improve", improve)
    plan(long_run(steps).source, speedup=2.0)
    assert len(tried) == starts
