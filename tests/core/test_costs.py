"""What previews and decisions cost, in calls of functions and in memory held, which are the same on any machine.

The bounds are about a sixth above what was counted; checking the values of every step, or copying every row, exceeds them.
"""

import gc
import sys

import pytest

import magpolicy

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
