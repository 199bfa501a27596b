"""The coefficients of a schedule, fitted together: the equations that are solved have a solution that is a least."""

import numpy as np
import pytest

from magpolicy import Calibration, plan
from magpolicy.calibration import _gram
from magpolicy.planning import _trajectory

STEPS = 14


def calibration(seed, window, kind):
    dice = np.random.default_rng(seed)
    noise = dice.normal(size=(STEPS, 1, 6))
    path = np.cumsum(noise, axis=0) if kind == "walk" else noise if kind == "noise" else np.cumsum(noise, axis=0) ** 2 + 1
    return Calibration.from_residuals(list(path), window=window, sigmas=[1 - i / STEPS for i in range(STEPS)])


@pytest.fixture
def solved(monkeypatch):
    """The curvatures of all equations that were solved, and of those that were looked at before."""
    found, looked = [], []
    solve, steadied = _trajectory._bounded_solution, _trajectory._steadied

    def noted(curvature, slope):
        found.append(curvature)
        return solve(curvature, slope)

    def seen(curvature):
        looked.append(steadied(curvature))
        return looked[-1]

    monkeypatch.setattr(_trajectory, "_bounded_solution", noted)
    monkeypatch.setattr(_trajectory, "_steadied", seen)
    return found, looked


@pytest.mark.parametrize("forecast", ["calibrated", "second-order"])
def test_what_is_solved_has_a_least(solved, forecast):
    """Where products are not known, the cost could fall without end; then products of different steps count for less."""
    found, looked = solved
    for seed in range(2):
        for kind in ("walk", "noise", "squares"):
            for window in (4, 5, 6):
                schedule = plan(calibration(seed, window, kind), steps=STEPS, computed=7, forecast=forecast)
                assert max((abs(c) for row in schedule.coefficients for cs in row for c in cs), default=0) <= _gram.LARGEST
    assert found
    assert min(np.linalg.eigvalsh(each).min(initial=1.0) for each in found) > 0
    assert min(np.linalg.eigvalsh(each).min(initial=1.0) for each in looked) < 0, "some were not fit to be solved"
