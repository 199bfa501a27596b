"""Deep calibration: what was run decides, within the runs allowed, and more budget is never worse."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpolicy import ArgumentError, Calibration, Schedule, plan, refine
from magpolicy.planning._local_search import evenly
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._skip_costs import ranking
from magpolicy.planning._target import PlanTarget


def computing(steps, count=14):
    mask = [i in steps for i in range(count)]
    return Schedule.from_mask({"cond": mask, "uncond": mask})


LAWS = settings(max_examples=40, deadline=None)


def example(steps=14, window=None):
    sigmas = np.linspace(1, 1 / steps, steps)
    random = np.random.default_rng(3)
    shapes = np.stack([np.ones(steps), sigmas, np.sin(5 * sigmas), np.exp(-9 * sigmas)], axis=1)
    rows = {n: [r.reshape(4, 8) for r in shapes @ random.normal(size=(4, 32))] for n in ("cond", "uncond")}
    return Calibration.from_residuals(rows, sigmas=sigmas.tolist(), window=window)


def rough(seed):
    """An error that has little to do with what a plan expects."""
    noise = np.random.default_rng(seed).normal(size=64)

    def run(schedule):
        return float(sum(noise[i] + 1 for i, m in enumerate(schedule.mask) if not m)) + schedule.rms_error

    return run


@LAWS
@given(st.lists(st.integers(2, 14), min_size=1, max_size=5), st.integers(5, 60), st.integers(0, 99), st.sampled_from([0, 2]))
def test_what_was_run_decides_and_a_larger_budget_is_never_worse(budgets, runs, seed, forced):
    found, run, told = example(), rough(seed), []
    refined = refine(found, run, computed=budgets, runs=runs, forced=range(forced), progress=lambda *news: told.append(news))
    assert refined.budgets == tuple(sorted(budgets))
    assert refined.runs == len(refined.tried) == len(told) <= runs
    assert [(made, allowed) for made, allowed, _, _ in told] == [(i, runs) for i in range(1, refined.runs + 1)]
    assert len({schedule for schedule, _ in refined.tried}) == refined.runs  # nothing is run twice
    assert list(refined.errors) == sorted(refined.errors, reverse=True)
    for budget, schedule, error in zip(refined.budgets, refined.schedules, refined.errors, strict=True):
        assert schedule.computed <= budget
        assert all(schedule.mask[:forced])
        assert error == run(schedule)
        assert error == min(e for s, e in refined.tried if s == schedule)
    assert refined.best == refined.schedules[-1]


@LAWS
@given(st.integers(2, 12), st.integers(0, 99))
def test_the_plans_it_starts_from_are_among_what_was_run(budget, seed):
    found = example()
    refined = refine(found, rough(seed), computed=budget, runs=12)
    tried = dict(refined.tried)
    for objective in ("latent", "gap", "trajectory", "relative"):
        assert plan(found, computed=budget, objective=objective) in tried
    assert refined.errors[0] == min(tried.values())


def test_plans_that_compute_the_last_step_and_even_steps_are_run_too():
    found = example()
    tried = dict(refine(found, rough(2), computed=5, runs=12).tried)
    for objective in ("latent", "gap", "trajectory", "relative"):
        assert plan(found, computed=5, objective=objective, forced=[-1]) in tried
    assert computing(evenly(14, 5)) in tried
    assert refine(found, rough(2), computed=1, runs=12).best.computed == 1  # no room for the last


def falling():
    """Each run comes out better than all before it: a search never ends by itself."""
    made = []

    def run(schedule):
        made.append(schedule)
        return -len(made)

    return run


def test_the_runs_are_shared_evenly_among_the_budgets_the_smallest_first():
    refined = refine(example(), falling(), computed=[9, 4, 11, 6], runs=102)
    spent = [schedule.computed for schedule, _ in refined.tried]
    assert spent == sorted(spent)
    assert Counter(spent) == {4: 25, 6: 25, 9: 26, 11: 26}
    assert refine(example(), falling(), computed=5).runs == 40
    assert "tried" not in repr(refined)


def test_where_runs_are_equally_good_the_first_stays():
    found = example()
    refined = refine(found, lambda schedule: 1.0, computed=[4, 6], runs=12)
    first = plan(found, computed=4, objective="latent")
    assert refined.tried[0][0] == first
    assert refined.schedules == (first, first)


def test_a_larger_budget_begins_from_the_best_of_the_smaller_with_the_steps_that_promise_most():
    found = example()
    refined = refine(found, rough(5), computed=[4, 6], runs=60)
    cost = ranking(PlanRequest(source=found, target=PlanTarget()).problem())
    steps = {i for i, computes in enumerate(refined.schedules[0].mask) if computes}
    for _ in range(2):
        steps = min(({*steps, i} for i in range(14) if i not in steps), key=lambda chosen: cost(sorted(chosen)))
    assert len(steps) == 6
    assert computing(steps) in dict(refined.tried)


def test_moves_find_what_plans_do_not():
    found = example()

    def late(schedule):
        return -float(sum(i for i, m in enumerate(schedule.mask) if m))  # best: compute at the end

    few, many = (refine(found, late, computed=5, runs=runs).errors[0] for runs in (4, 200))
    middle = refine(found, lambda s: abs(max(i for i, m in enumerate(s.mask) if m) - 7), computed=2, runs=200)
    assert middle.best == computing({0, 7})
    assert many == late(refine(found, late, computed=5, runs=200).schedules[0]) == -(13 + 12 + 11 + 10) <= few


def test_speedups_are_budgets_and_settings_are_a_plans():
    found = example()
    refined = refine(found, rough(1), speedup=[2.0, 3.5], steps=28, runs=10, max_skips=6, forecast="hold", guidance=3.0)
    assert refined.budgets == (8, 14)
    assert refined.best.steps == 28
    assert not any(map(any, refined.best.coefficients))
    close = refine(found, rough(1), computed=6, runs=60, max_skips=2)
    assert all("···" not in schedule.strip for schedule, _ in close.tried)
    alone = refine(found, rough(1), speedup=2.0, runs=3)
    assert alone.budgets == (7,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "pass one of them"),
        ({"computed": 3, "speedup": 2.0}, "pass one of them"),
        ({"computed": []}, "ask for nothing"),
        ({"computed": [3, 5, 6], "runs": 2}, "runs=2 must be a whole number >= 3; try 40"),
        ({"computed": [5] * 41, "runs": 2}, "runs=2 must be a whole number >= 41; try 41"),
        ({"computed": [1, 5], "max_skips": 2}, "computed=1 leaves 1 of 14"),
        ({"computed": [3, 20]}, "computed=20 is more than the 14"),
        ({"computed": 0}, "computed=0 must be"),
        ({"speedup": "x"}, "speedup='x' must be a number"),
        ({"computed": 5, "objectives": ["best"]}, "objectives='best' is not known"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_run(settings, message):
    def run(schedule):
        raise AssertionError("nothing may run")

    with pytest.raises(ArgumentError, match=message):
        refine(example(), run, **settings)


def test_runs_that_give_no_number():
    with pytest.raises(ArgumentError, match="run gave no number"):
        refine(example(), lambda schedule: math.nan, computed=5, runs=5)
    calls = []

    def sometimes(schedule):
        calls.append(schedule)
        return math.nan if len(calls) == 1 else 1.0

    assert refine(example(), sometimes, computed=5, runs=5).errors == (1.0,)


def test_long_runs_are_refined_too():
    refined = refine(example(210, window=12), lambda s: s.rms_error, computed=70, runs=6, objectives=["latent", "gap"])
    assert refined.best.computed == 70
    assert refined.runs == 6


def test_an_error_in_a_run_is_the_callers():
    def broken(schedule):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        refine(example(), broken, computed=5)
