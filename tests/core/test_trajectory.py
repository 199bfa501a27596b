"""The coefficients of a schedule, fitted together: the equations that are solved have a solution that is a least."""

import itertools

import numpy as np
import pytest

from magpolicy import Calibration, plan
from magpolicy.calibration import _gram
from magpolicy.planning import _trajectory
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._skip_costs import distance_of, forbidden_skips
from magpolicy.planning._target import PlanTarget

STEPS = 14


def calibration(seed, window, kind):
    dice = np.random.default_rng(seed)
    noise = dice.normal(size=(STEPS, 1, 6))
    path = np.cumsum(noise, axis=0) if kind == "walk" else noise if kind == "noise" else np.cumsum(noise, axis=0) ** 2 + 1
    return Calibration.from_residuals(list(path), window=window, sigmas=[1 - i / STEPS for i in range(STEPS)])


@pytest.fixture
def solved(monkeypatch):
    """The curvatures of all equations that were solved, and for each those that were looked at before, the last as solved."""
    found, looked = [], [[]]
    solve, steadied = _trajectory._bounded_solution, _trajectory._steadied

    def noted(curvature, slope):
        found.append(curvature)
        looked.append([])
        return solve(curvature, slope)

    def seen(curvature):
        looked[-1].append(steadied(curvature))
        return looked[-1][-1]

    monkeypatch.setattr(_trajectory, "_bounded_solution", noted)
    monkeypatch.setattr(_trajectory, "_steadied", seen)
    return found, looked


@pytest.mark.parametrize("forecast", ["calibrated", "second-order"])
def test_what_is_solved_has_a_least(solved, forecast):
    """Where products are not known, the cost could fall without end; then, and only then, products of different steps count for
    less.
    """
    found, looked = solved
    for seed in range(2):
        for kind in ("walk", "noise", "squares"):
            for window in (4, 5, 6):
                schedule = plan(calibration(seed, window, kind), steps=STEPS, computed=7, forecast=forecast)
                assert max((abs(c) for row in schedule.coefficients for cs in row for c in cs), default=0) <= _gram.LARGEST
    assert found
    assert min(map(least, found)) > 0
    taken = [[least(each) > 0 for each in looks[:-1]] for looks in looked[:-1]]
    assert all(not any(looks[:-1]) for looks in taken), "the first that is fit to be solved is"
    assert {len(looks) for looks in taken} > {1}, "some were not fit to be solved"


def least(curvatures):
    return np.linalg.eigvalsh(curvatures).min(initial=1.0)


COMPUTED = (0, 1, 3, 4, 7)
CHAINS = {2: (1, 0), 5: (4, 3, 1), 6: (4, 3, 1), 8: (7, 4, 3), 9: (7, 4, 3)}
"""Each skipped step, and the computed ones before it."""


def paths(names, seed=0, steps=10):
    dice = np.random.default_rng(seed)
    return {name: np.cumsum(dice.normal(size=(steps, 24)), axis=0) + dice.normal(size=24) for name in names}


def trajectory(rows, window=None, **target):
    sigmas = [(1 - i / 10) ** 1.5 for i in range(10)]
    known = {} if window is None else {"window": window}
    source = Calibration.from_residuals({name: list(row[:, None]) for name, row in rows.items()}, sigmas=sigmas, **known)
    problem = PlanRequest(source=source, target=PlanTarget(computed=5, **target)).problem()
    return distance_of(problem, forbidden_skips(problem)), np.array(sigmas)


def weights(sigmas):
    share = -np.diff(sigmas, append=0.0) / sigmas[0]
    ahead = 1 + np.cumsum(share[::-1])[::-1]
    both = np.outer(share, share) * (np.minimum.outer(ahead, ahead) + 0.1 * np.eye(len(share)))
    skipped = list(CHAINS)
    return np.linalg.cholesky(both[np.ix_(skipped, skipped)])


def gathered(rows, factors, error):
    """All errors, of the combination that factors make or of each stream, weighted: their squares add up to the cost."""
    each = {name: np.array([error(name, row, i) for i in CHAINS]) for name, row in rows.items()}
    if factors is None:
        return np.concatenate([e / np.sqrt(len(rows)) for e in each.values()], axis=1) / np.sqrt(24)
    return sum(factors[name] * e for name, e in each.items()) / np.sqrt(24)


@pytest.mark.parametrize("guidance", [None, 4.0])
@pytest.mark.parametrize(("forecast", "order"), [("hold", 0), ("calibrated", 1), ("second-order", 2)])
@pytest.mark.parametrize("names", [("one",), ("cond", "uncond")], ids=len)
def test_the_coefficients_are_those_of_least_squares_on_the_residuals(names, forecast, order, guidance):
    rows = paths(names)
    found, sigmas = trajectory(rows, forecast=forecast, guidance=guidance)
    factors = None if guidance is None or len(names) == 1 else {"cond": guidance, "uncond": 1 - guidance}
    lower = weights(sigmas)

    def weighted(error):
        return (lower.T @ gathered(rows, factors, error)).ravel()

    places = [(n, i, o) for n in names for i, chain in CHAINS.items() for o in range(min(order, len(chain) - 1))]
    held = weighted(lambda name, row, i: row[i] - row[CHAINS[i][0]])

    def column(stream, step, o):
        def difference(name, row, i):
            return row[CHAINS[i][o]] - row[CHAINS[i][o + 1]] if (name, i) == (stream, step) else 0 * row[0]

        return weighted(difference)

    columns = [column(*place) for place in places]
    best = np.linalg.lstsq(np.stack(columns, axis=1), held, rcond=None)[0] if places else np.zeros(0)
    left = held - sum((c * column for c, column in zip(best, columns, strict=True)), np.zeros(held.shape))
    assert found.cost(COMPUTED) == pytest.approx(left @ left, rel=1e-4)
    fitted = found.fit(COMPUTED)
    assert {name: list(row) for name, row in fitted.items()} == {name: list(CHAINS) for name in names}
    for (name, i, o), c in zip(places, best, strict=True):
        assert fitted[name][i][o] == pytest.approx(c, abs=2e-3)
    assert sum(len(c) for row in fitted.values() for c in row.values()) == len(places)


def test_what_may_not_be_skipped_costs_without_end():
    found, _ = trajectory(paths(["one"]), max_skips=2, forced=[4])
    assert np.isfinite(found.cost(COMPUTED))
    for computed in ((0, 1, 3, 7), (0, 4), (0, 1, 3, 5, 7), (0, 3, 4, 6)):  # 4 is forced, or more than two are skipped
        assert found.cost(computed) == np.inf
        with pytest.raises(ValueError, match="not all that is skipped there may be"):
            found.fit(computed)
    assert np.isfinite(found.cost((0, 3, 4, 7)))


def test_one_skip_that_is_not_allowed_forbids_the_schedules_that_make_it():
    source = Calibration.from_residuals(list(paths(["one"])["one"][:, None]), sigmas=[1 - i / 10 for i in range(10)])
    problem = PlanRequest(source=source, target=PlanTarget(computed=5)).problem()
    allowed = np.zeros_like(forbidden_skips(problem))
    made = {(j - p, j, i - j) for i, (j, p, *_) in CHAINS.items()}
    for a, j, k in itertools.product(range(10), range(10), range(1, 10)):
        if j + k < 10 and a <= j:
            forbidden = allowed.copy()
            forbidden[a, j, k] = True
            one = _trajectory.Trajectory(problem.errors, problem.step_sizes, forbidden, np.eye(10))
            assert (one._chains(COMPUTED) is None) is ((a, j, k) in made)


def test_forecasts_that_are_not_fitted_cost_what_they_leave():
    rows = paths(["one"])
    found, sigmas = trajectory(rows, forecast="linear", damping=0.5)
    fitted = found.fit(COMPUTED)["one"]

    def error(name, row, i):
        j, p, *_ = CHAINS[i]
        c = 0.5 * (sigmas[i] - sigmas[j]) / (sigmas[j] - sigmas[p])
        assert fitted[i] == (pytest.approx(c),)
        return row[i] - row[j] - c * (row[j] - row[p])

    left = (weights(sigmas).T @ gathered(rows, None, error)).ravel()
    assert found.cost(COMPUTED) == pytest.approx(left @ left)


@pytest.mark.parametrize(
    ("wanted", "ridge"), [(31.9, 0.0), (-32.0, 0.0), (32.00005, 1e-6), (32.005, 1e-4), (-32.5, 1e-2), (90.0, None)]
)
def test_a_coefficient_that_is_too_large_is_held_back_by_as_little_as_does(wanted, ridge):
    """The second coefficient wants 10; its curvature is three times that of the first, so that their mean is twice it."""
    for size in (1.0, 1e-9):
        curvature, slope = size * np.diag([1.0, 3.0])[None], size * np.array([[wanted, 30.0]])
        best = _trajectory._bounded_solution(curvature, slope)[0]
        last = 1e-2 if ridge is None else ridge
        expected = [wanted / (1 + 3 * last), 30 / (3 + 5 * last)]
        assert best == pytest.approx(np.clip(expected, -32, 32), rel=1e-9)
        assert abs(best[0]) <= _gram.LARGEST
    assert _trajectory._bounded_solution(np.zeros((1, 0, 0)), np.zeros((1, 0))).shape == (1, 0)


def test_what_is_steadied_is_so_by_a_millionth_and_never_vanishes():
    one = np.array([[[2.0, 1.0], [1.0, 0.0]]])
    assert _trajectory._steadied(one) == pytest.approx(one + np.diag([2e-6 + 2e-12, 2e-12]), rel=1e-12, abs=1e-18)
    assert np.diagonal(_trajectory._steadied(np.zeros((1, 2, 2)))[0]) == pytest.approx([1e-292] * 2, rel=1e-6)
    assert one[0, 1, 1] == 0, "what was given is left as it is"


def test_errors_whose_product_is_not_known_are_taken_to_be_at_right_angles():
    rows = paths(["one"])
    found, sigmas = trajectory(rows, window=4, forecast="hold")
    errors = gathered(rows, None, lambda name, row, i: row[i] - row[CHAINS[i][0]])
    form = weights(sigmas) @ weights(sigmas).T * (errors @ errors.T)
    total = 0.0
    for (a, i), (b, k) in itertools.product(enumerate(CHAINS), enumerate(CHAINS)):
        apart = max(abs(x - y) for x in (i, CHAINS[i][0]) for y in (k, CHAINS[k][0]))
        total += form[a, b] if i == k or apart <= 4 else 0.0
    assert found.cost(COMPUTED) == pytest.approx(total)
    assert total != pytest.approx(form.sum())


@pytest.mark.parametrize("names", [("one",), ("cond", "uncond")], ids=len)
def test_a_coefficient_needs_every_product_of_the_residuals_it_uses(names):
    for forecast, used in (
        ("second-order", {2: 1, 5: 2, 6: 1, 8: 1, 9: 0}),  # 6 reaches to 1 with the second, 9 to 4 with the first
        ("calibrated", {2: 1, 5: 1, 6: 1, 8: 1, 9: 0}),
    ):
        found, _ = trajectory(paths(names), window=4, forecast=forecast)
        for row in found.fit(COMPUTED).values():
            assert {i: len(c) for i, c in row.items()} == used
        assert np.isfinite(found.cost(COMPUTED))
