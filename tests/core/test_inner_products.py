"""What follows from inner products, place by place, against residuals and formulas written out."""

import itertools

import numpy as np
import pytest

from magpolicy.calibration import _gram

SIZE = 7


def residuals(count=6, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(size=(count, SIZE)), axis=0)


def banded(rows, window):
    count = len(rows)
    return np.array([[rows[i] @ rows[i - k] if i >= k else np.nan for k in range(window + 1)] for i in range(count)])


def squared(row):
    return row @ row


@pytest.mark.parametrize(("count", "window"), [(1, 0), (2, 0), (5, 2), (5, 4)])
def test_an_inner_product_is_known_within_the_run_and_the_band(count, window):
    rows = residuals(count)
    every = np.arange(-3, count + 3)
    found = _gram.inner(banded(rows, window), every[:, None], every)
    for i, j in itertools.product(every, every):
        known = min(i, j) >= 0 and max(i, j) < count and abs(i - j) <= window
        np.testing.assert_allclose(found[i + 3, j + 3], rows[i] @ rows[j] if known else np.nan)


@pytest.mark.parametrize(("count", "window"), [(1, 0), (2, 0), (5, 2), (5, 4)])
def test_one_between_two_streams_is_known_there_too(count, window):
    a, b = residuals(count), residuals(count, seed=1)
    table = np.full((count, 2 * window + 1), np.nan)
    for i, j in itertools.product(range(count), repeat=2):
        if abs(i - j) <= window:
            table[i, window + j - i] = a[i] @ b[j]
    every = np.arange(-3, count + 3)
    found = _gram.cross_inner(table, every[:, None], every)
    for i, j in itertools.product(every, every):
        known = min(i, j) >= 0 and max(i, j) < count and abs(i - j) <= window
        np.testing.assert_allclose(found[i + 3, j + 3], a[i] @ b[j] if known else np.nan)


def test_differences_are_those_of_the_residuals():
    rows = residuals()
    gram = banded(rows, 5)
    for p, j, i in itertools.combinations(range(6), 3):
        u, v = rows[i] - rows[j], rows[j] - rows[p]
        assert [float(x) for x in _gram.differences(gram, p, j, i)] == pytest.approx([u @ u, u @ v, v @ v])
    still = banded(np.stack([rows[0]] * 3), 2)
    still[2, 1] += 1e-9  # rounding
    assert [float(_gram.differences(still, 0, 1, 2)[q]) for q in (0, 2)] == [0, 0]


@pytest.mark.parametrize(
    ("uu", "uv", "vv", "expected"),
    [
        (1.0, 0.5, 1.0, 0.5),
        (1.0, -0.5, 1.0, -0.5),
        (4.0, 0.5, 0.5, 1.0),
        (1.0, 0.11, 1.0, 0.11),
        (1.0, 0.09, 1.0, 0.0),  # gains less than a hundredth
        (2.0, 0.15, 1.0, 0.15),
        (2.0, 0.13, 1.0, 0.0),
        (1e4, 40.0, 1.0, 32.0),  # no coefficient is larger
        (1e4, -40.0, 1.0, -32.0),
        (1.0, 1e-12, 2e-12, 0.0),
        (1e-13, 1e-12, 2e-12, 0.5),
        (1e-13, 5e-13, 9e-13, 0.0),  # a difference that is rounding, of residuals of length 1
        (1.0, 0.0, 0.0, 0.0),
        (np.nan, 1.0, 1.0, 0.0),
        (1.0, np.nan, 1.0, 0.0),
        (1.0, 1.0, np.nan, 0.0),
    ],
)
def test_the_coefficient_is_least_squares_where_that_pays(uu, uv, vv, expected):
    assert float(_gram.best_coefficient(*map(np.float64, (uu, uv, vv, 1.0)))) == pytest.approx(expected)


def test_what_a_difference_must_reach_goes_with_the_length():
    one = [np.float64(x) for x in (1e-9, 1e-9, 1e-9)]
    assert float(_gram.best_coefficient(*one, np.float64(900.0))) == pytest.approx(1.0)
    assert float(_gram.best_coefficient(*one, np.float64(1100.0))) == 0.0
    assert float(_gram.best_coefficient(np.float64(1.0), np.float64(0.3), np.float64(1.0), np.float64(1.0), margin=0.1)) == 0.0


@pytest.mark.parametrize(
    ("coefficients", "weights"),
    [((), [1.0]), ((0.5,), [1.5, -0.5]), ((0.5, -2.0), [1.5, -2.5, 2.0]), ((0.0,), [1.0, 0.0])],
)
def test_a_forecast_is_a_sum_of_residuals_and_rounds_as_they_do(coefficients, weights):
    assert _gram.on_residuals(coefficients) == weights
    share = sum(w * w for w in weights) - 1
    assert float(_gram.rounded(3.0, coefficients)) == pytest.approx(3.0 * share * 2.0**-48)


def test_an_average_rounds_no_more_than_holding():
    assert float(_gram.rounded(3.0, (-0.5,))) == 0.0


def test_what_a_forecast_leaves():
    values = [np.float64(x) for x in (3.0, 1.0, 2.0)]
    assert float(_gram.remaining(*values, 0.5)) == pytest.approx(3 - 2 * 0.5 * 1 + 0.5**2 * 2)
    assert float(_gram.remaining(*values, -1.0)) == pytest.approx(3 + 2 + 2)
    assert float(_gram.remaining(np.float64(3.0), np.float64(np.nan), np.float64(np.nan), 0.0)) == 3.0
    assert np.isnan(_gram.remaining(np.float64(3.0), np.float64(np.nan), np.float64(2.0), 0.5))
    assert float(_gram.remaining(np.float64(1.0), np.float64(1.0), np.float64(0.9), 1.0)) == 0.0


@pytest.mark.parametrize(
    ("history", "coefficients"),
    [((3,), ()), ((3, 1), ()), ((3, 1), (0.5,)), ((3, 1, 0), (0.5,)), ((4, 2, 1), (0.5, -0.25)), ((4, 3, 0), (-30.0, 20.0))],
)
def test_the_error_of_a_forecast_is_that_of_the_residuals(history, coefficients):
    rows = residuals()
    weights = _gram.on_residuals(coefficients)
    left = rows[5] - sum(w * rows[place] for w, place in zip(weights, history, strict=False))
    expected = np.linalg.norm(left) / np.linalg.norm(rows[5])
    assert _gram.error_of(banded(rows, 5), history, 5, coefficients) == pytest.approx(expected)


def test_an_error_that_is_not_known_is_infinite():
    rows = residuals()
    gram = banded(rows, 2)
    assert np.isfinite(_gram.error_of(gram, (3,), 5, ()))
    for history, coefficients in (((2,), ()), ((4, 1), (0.5,)), ((4,), (0.5,)), ((), ()), ((4, 3), (0.5, 0.1))):
        assert _gram.error_of(gram, history, 5, coefficients) == np.inf
    rows[5] = 0.0
    assert _gram.error_of(banded(rows, 5), (4,), 5, ()) == np.inf


def test_what_is_forecast_exactly_leaves_what_rounding_adds():
    rows = np.outer(np.arange(1.0, 5.0), np.ones(4))  # a straight line
    error = _gram.error_of(banded(rows, 3), (2, 1), 3, (1.0,))
    assert error == pytest.approx(2.0**-24 * 2, rel=1e-2)  # of 2 r_j - r_p: sqrt(4 + 1 - 1)


def test_lines_over_noise_level():
    levels = np.array([1.0, 0.8, 0.8, 0.5, 0.1])
    for p, j, i in itertools.combinations(range(-2, 8), 3):
        known = p >= 0 and i < 5 and levels[j] != levels[p]
        expected = (levels[i] - levels[j]) / (levels[j] - levels[p]) if known else 0.0
        assert float(_gram.slopes(levels, *map(np.int64, (p, j, i)))) == pytest.approx(expected)


def test_samples_agree_on_a_forecast_or_there_is_none():
    """Each sample is forecast with the coefficient of the others; together that must leave 1 % less than holding."""
    dice = np.random.default_rng(3)
    outcomes = set()
    for _ in range(60):
        count = int(dice.integers(2, 4))
        common = np.cumsum(dice.normal(size=(3, SIZE)), axis=0)
        runs = [common + dice.uniform(0, 1.5) * np.cumsum(dice.normal(size=(3, SIZE)), axis=0) for _ in range(count)]
        grams = np.stack([banded(rows, 2) for rows in runs])
        u, v = [rows[2] - rows[1] for rows in runs], [rows[1] - rows[0] for rows in runs]
        left = 0.0
        for index in range(count):
            others = [q for q in range(count) if q != index]
            c = sum(u[q] @ v[q] for q in others) / sum(squared(v[q]) for q in others)
            left += squared(u[index] - c * v[index])
        pays = left < 0.99 * sum(map(squared, u))
        gram = grams.mean(axis=0)
        alone = float(_gram.calibrated(gram, None, 0, 1, 2))
        assert float(_gram.calibrated(gram, grams, 0, 1, 2)) == pytest.approx(alone if pays else 0.0)
        assert float(_gram.calibrated(gram, grams[:1], 0, 1, 2)) == alone
        outcomes.add((pays, alone != 0.0))
    assert {(True, True), (False, True)} <= outcomes


@pytest.mark.parametrize(("window", "reach"), [(5, 5), (2, 3)])
@pytest.mark.parametrize("forecast", ["hold", "linear", "calibrated", "second-order"])
def test_a_table_holds_the_forecast_of_each_skip(forecast, window, reach):
    rows, levels = residuals(), [1.0, 0.9, 0.7, 0.4, 0.3, 0.1]
    gram = banded(rows, window)
    table = _gram.tabulate(gram, reach, forecast, levels=levels, damping=0.6)
    assert table.coefficient.shape == table.squared.shape == (reach + 1, 6, reach + 1)
    for a, j, k in itertools.product(range(reach + 1), range(6), range(reach + 1)):
        p, i, c = j - a, j + k, 0.0
        if a and k and p >= 0 and i < 6 and i - p <= window:
            if forecast == "linear":
                c = 0.6 * (levels[i] - levels[j]) / (levels[j] - levels[p])
            elif forecast != "hold":
                c = float(_gram.calibrated(gram, None, p, j, i))
        assert table.coefficient[a, j, k] == pytest.approx(c)
        if i >= 6 or k > window:
            assert table.squared[a, j, k] == np.inf
        elif k:
            left = rows[i] - rows[j] - c * (rows[j] - rows[p] if c else 0.0)
            assert table.squared[a, j, k] == pytest.approx(squared(left))
    again = _gram.tabulate(gram, reach, "linear", levels=levels)
    assert again.coefficient[1, 1, 1] == pytest.approx((0.7 - 0.9) / (0.9 - 1.0))


def test_a_table_of_several_samples_is_of_what_they_agree_on():
    runs = [np.full((1, 4), 1.0) * np.array(line)[:, None] for line in ([10.0, 13.0, 16.0], [10.0, 11.0, 10.0])]
    grams = np.stack([banded(rows, 2) for rows in runs])
    alone, agreed = (_gram.tabulate(grams.mean(axis=0), 2, "calibrated", samples=s) for s in (None, grams))
    assert alone.coefficient[1, 1, 1] == pytest.approx(0.8)
    assert agreed.coefficient[1, 1, 1] == 0.0
