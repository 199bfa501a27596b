"""Leaving a plan: when, and for which one, against every choice there is."""

import itertools
import math

import numpy as np
import pytest

from magpolicy import ArgumentError, Calibration, Safeguard, Schedule, plan
from magpolicy.planning._problem import PlanRequest
from magpolicy.planning._replan import _largest_accepted, replan
from magpolicy.planning._safeguard import compute_rest, safeguard_of
from magpolicy.planning._target import PlanTarget
from magpolicy.planning._trust import ForecastTrust

STEPS = 9


def calibration(streams=("single",), seed=0, window=None):
    dice = np.random.default_rng(seed)
    levels = np.linspace(1, 1 / STEPS, STEPS)
    shapes = np.stack([np.ones(STEPS), levels, np.sin(5 * levels), np.exp(-9 * levels)], axis=1)
    rows = {
        name: list((shapes @ dice.normal(size=(4, 16)) + 0.02 * dice.normal(size=(STEPS, 16)))[:, None]) for name in streams
    }
    more = {} if window is None else {"window": window}
    return Calibration.from_residuals(rows, sigmas=levels.tolist(), **more)


def skips(choice):
    """(a, j, k) of each skipped step, as tables of errors are indexed."""
    before = choice[0]
    for j, following in itertools.pairwise((*choice, STEPS)):
        for i in range(j + 1, following):
            yield j - before, j, i - j
        before = j


def expected_rest(problem, mask, at, factor, extra):
    """The computed steps from ``at`` on that the rest should have; by trying every choice."""
    errors = np.max([problem.errors.relative(name) for name in problem.streams], axis=0)
    squared, _ = problem.errors.combined()
    computed = [i for i in range(STEPS) if mask[i]]
    bound = max((errors[skip] for skip in skips(computed)), default=0.0) / factor
    begun = [i for i in computed if i <= at]
    left = len(computed) - len(begun) + 1
    most = STEPS - at if extra is None else min(left + extra, STEPS - at)
    found = {}
    for size in range(1, most + 1):
        for rest in itertools.combinations(range(at + 1, STEPS), size - 1):
            made = [skip for skip in skips((*begun, *rest)) if skip[1] >= at]
            cost = sum(problem.step_sizes[j + k] ** 2 * squared[a, j, k] for a, j, k in made)
            kept = all(errors[skip] <= bound for skip in made)
            if np.isfinite(cost):
                found.setdefault((size, kept), []).append((cost, rest))
    enough = [size for size, kept in found if kept and size >= min(left, most)]
    if enough:
        size = min(enough)
        return min(found[size, True])[1]
    size = max(size for size, _ in found)
    return min(entry for kept in (True, False) for entry in found.get((size, kept), ()))[1]


@pytest.mark.parametrize(("streams", "window"), [(("single",), None), (("cond", "uncond"), None), (("single",), 3)])
def test_the_error_that_a_plan_accepted_is_the_largest_of_its_skips_that_is_known(streams, window):
    source = calibration(streams, window=window)
    problem = PlanRequest(source=source, target=PlanTarget(computed=4)).problem()
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(1, STEPS), size) for size in (0, 1, 2, 3, 8)):
        computed = (0, *chosen)
        known = [skip for skip in skips(computed) if max(skip[0], skip[2]) <= problem.longest_gap]
        errors = [problem.errors.relative(name)[skip] for skip in known for name in streams]
        worst = max((error for error in errors if np.isfinite(error)), default=1e-12)
        schedule = Schedule.from_mask([i in computed for i in range(STEPS)])
        assert _largest_accepted(schedule, problem) == worst


@pytest.mark.parametrize("extra", [None, 0, 1])
@pytest.mark.parametrize("factor", [1.0, 1.7, 4.0, 30.0])
@pytest.mark.parametrize(("streams", "seed"), [(("single",), 0), (("cond", "uncond"), 1)], ids=["one", "two"])
def test_the_rest_is_the_cheapest_that_keeps_the_error_that_was_accepted(streams, seed, factor, extra):
    found = calibration(streams, seed)
    first = plan(found, computed=4)
    problem = PlanRequest(source=found, target=PlanTarget(computed=4)).problem()
    for at in (i for i in range(STEPS) if first.mask[i]):
        again = replan(problem, first, at, factor, extra)
        rest = expected_rest(problem, first.mask, at, factor, extra)
        assert [i for i in range(at + 1, STEPS) if again.mask[i]] == list(rest)
        for ours, theirs in (
            (again.masks, first.masks),
            (again.coefficients, first.coefficients),
            (again.modelled, first.modelled),
            (again.checks, first.checks),
        ):
            assert [row[: at + 1] for row in ours] == [row[: at + 1] for row in theirs]
        for name in again.streams:
            for i in range(at + 1, STEPS):
                history = [j for j in range(i) if again.mask[j]][::-1]
                if not again.mask[i] and history:
                    k, a = i - history[0], history[0] - history[1] if len(history) > 1 else 0
                    table = problem.errors.forecasts[name].coefficient[a, history[0], k]
                    assert again.stream_coefficients(name)[i] == ((table,) if table else ()), "each for its own error"


def test_what_cannot_be_planned_again():
    found = calibration(("cond", "uncond"))
    problem = PlanRequest(source=found, target=PlanTarget(computed=4)).problem()
    apart = Schedule.from_mask({"cond": [1, 0, 1] * 3, "uncond": [1, 1, 0] * 3})
    assert replan(problem, apart, 3, 2.0, None) is None
    narrow = calibration(window=2)
    problem = PlanRequest(source=narrow, target=PlanTarget(computed=4)).problem()
    wide = Schedule.from_mask([1, 0, 0, 0, 1, 0, 0, 1, 0])
    assert replan(problem, wide, 4, 2.0, None) is None, "from that gap on nothing is known"
    assert replan(problem, wide, 7, 2.0, None) is not None


def test_at_which_error_a_plan_is_left_and_what_is_expected_then():
    found = calibration()
    first = plan(found, computed=4)
    guard = safeguard_of(True, first, PlanRequest(source=found, target=PlanTarget(computed=4)))
    assert (guard.margin, guard.floor, guard.extra) == (2.0, 0.02, None)
    compared = [i for i in range(STEPS) if first.checks[0][i]]
    assert len(compared) > 1
    for at in compared:
        expected = first.checks[0][at][1]
        bound = max(2 * expected, 0.02)
        assert guard.compare("single", at, bound) is None
        left = guard.compare("single", at, bound * 1.001)
        factor = left.measured / expected
        assert left.schedule.checks[0][: at + 1] == first.checks[0][: at + 1]
        for i, (raised, before) in enumerate(zip(guard.after(left).plan.checks[0], left.schedule.checks[0], strict=True)):
            if before is None:
                assert raised is None
            else:
                assert raised == (before[0], before[1] if i <= at else pytest.approx(before[1] * factor))
        assert guard.after(left).plan == left.schedule
        assert (guard.after(left).margin, guard.after(left).floor) == (2.0, 0.02)
        for measured in (math.inf, math.nan):
            computes = guard.compare("single", at, measured)
            assert computes.outcome == "computes"
            assert all(computes.schedule.mask[at:])


def test_what_is_compared_is_what_the_plan_computed():
    first = plan(calibration(), computed=4)
    guard = safeguard_of(3.5, first)
    assert guard.margin == 3.5
    computed = [i for i in range(STEPS) if first.mask[i]]
    for place, at in enumerate(computed):
        before = computed[:place][::-1]
        assert guard.check("single", at, before) == first.checks[0][at]
        assert guard.check("single", at, before[:2]) == first.checks[0][at], "two are all that forecasts use"
        if before:
            assert guard.check("single", at, ()) is None
            assert guard.check("single", at, (before[0] - 1, *before[1:])) is None
            assert guard.check("single", at, (before[0] + 1, *before[1:])) is None
        if len(before) > 1:
            assert guard.check("single", at, before[:1]) is None
    for at in (-1, STEPS, STEPS + 3, first.mask.index(False)):
        assert guard.check("single", at, ()) is None
        assert guard.compare("single", at, 0.0) is None
    part = plan(calibration(), computed=4, part=(3, STEPS))
    guard = safeguard_of(True, part)
    compared = [i for i in range(3, STEPS) if part.checks[0][i - 3]]
    assert len(compared) > 1
    for at in compared:
        history = [i for i in range(3, at) if part.mask[i - 3]][::-1]
        assert guard.check("single", at, history) == part.checks[0][at - 3]
        assert guard.compare("single", at, 9.0).step == at
        again = Safeguard(plan=part, calibration=calibration(), floor=0.0)
        left = again.compare("single", at, 3 * part.checks[0][at - 3][1])
        factors = [3.0 if i > at else 1.0 for i in range(3, STEPS)]
        for after, before, factor in zip(again.after(left).plan.checks[0], left.schedule.checks[0], factors, strict=True):
            assert after == (None if before is None else (before[0], pytest.approx(before[1] * factor)))
    assert guard.compare("single", 2, 9.0) is None


def test_safeguards_that_are_asked_for():
    first, other = plan(calibration(), computed=4), plan(calibration(), computed=5)
    assert safeguard_of(None, first) is None
    assert safeguard_of(False, first) is None
    assert safeguard_of(1, first).margin == 1.0
    mine = Safeguard(plan=other, margin=3.0, floor=0.1, extra=2)
    used = safeguard_of(mine, first)
    assert (used.plan, used.margin, used.floor, used.extra) == (first, 3.0, 0.1, 2)
    for wrong in (0.99, "yes", math.nan):
        with pytest.raises(ArgumentError, match="safeguard="):
            safeguard_of(wrong, first)
    Safeguard(plan=first, margin=1, floor=0, extra=0)
    with pytest.raises(ArgumentError, match="calibration=3 must be a Calibration"):
        Safeguard(plan=first, calibration=3)


def test_computing_the_rest_keeps_what_is_over():
    first = Schedule.from_mask(
        [1, 1, 0, 1, 0, 0],
        coefficients=[0, 0, 0.5, 0, 0.25, 0.75],
        errors=[0, 0, 0.1, 0, 0.2, 0.3],
        checks={"single": [None, None, None, ((0.5,), 0.1), None, None]},
        first_step=2,
        sigmas=[0.8, 0.7, 0.6, 0.4, 0.3, 0.1],
    )
    for at, mask in ((0, [1] * 6), (2, [1, 1, 0, 1, 1, 1]), (3, [1, 1, 0, 1, 1, 1]), (4, [1, 1, 0, 1, 0, 1])):
        rest = compute_rest(first, at)
        assert list(rest.mask) == [bool(m) for m in mask]
        assert rest.coefficients[0] == tuple(c if i <= at else () for i, c in enumerate(first.coefficients[0]))
        assert rest.modelled[0] == tuple(e if i <= at else 0.0 for i, e in enumerate(first.modelled[0]))
        assert rest.checks[0] == tuple(c if i <= at else None for i, c in enumerate(first.checks[0]))
        assert (rest.first_step, rest.sigmas) == (2, first.sigmas)


def test_a_schedule_of_ones_own_is_planned_again_from_the_calibration_it_is_given():
    found = calibration()
    given = plan(found, computed=4)
    held = plan(found, computed=4, forecast="hold")
    for schedule, target in ((given, PlanTarget()), (held, PlanTarget(forecast="hold"))):
        at = next(i for i in range(1, STEPS) if schedule.checks[0][i])
        expected = schedule.checks[0][at][1]
        again = Safeguard(plan=schedule, calibration=found, floor=0.0).compare("single", at, 3 * expected)
        problem = PlanRequest(source=found, target=target, sigmas=schedule.sigmas).problem()
        best = replan(problem, schedule, at, 3.0, None)
        assert (again.schedule, again.schedule.coefficients) == (best, best.coefficients)
    part = plan(found, computed=3, part=(3, STEPS))
    at = next(i for i in range(3, STEPS) if part.checks[0][i - 3])
    again = Safeguard(plan=part, calibration=found, floor=0.0).compare("single", at, 3 * part.checks[0][at - 3][1])
    assert (again.schedule.first_step, again.schedule.steps, again.step) == (3, STEPS - 3, at)
    assert again.schedule.mask[: at - 2] == part.mask[: at - 2]


@pytest.mark.parametrize(
    ("cosine", "since", "holds", "told"),
    [
        (0.1, 0.0, True, 0),
        (0.1001, 0.0, False, 2),
        (-1.0, 0.95, True, 0),
        (math.nan, 0.0, True, 0),
        (-1.0, 0.951, False, 1),
        (1.0, 0.951, False, 1),
        (1.0, 0.95, False, 2),
    ],
)
def test_what_a_comparison_says(cosine, since, holds, told):
    """After one that spoke for forecasts."""
    once = ForecastTrust().after(0.5, since=0.0)
    assert (once.holds, once.told, once.settled) == (False, 1, False)
    found = once.after(cosine, since=since)
    assert (found.holds, found.told, found.settled) == (holds, told, False)
    again = ForecastTrust(holds=True).after(0.5, since=0.0)
    assert (again.holds, again.told) == (False, 1)


def test_three_comparisons_in_a_row_settle_it():
    for cosines, settled in (([0.5] * 2, False), ([0.5] * 3, True), ([0.5, 0.5, 0.0, 0.5], False), ([0.5] * 4, True)):
        trust = ForecastTrust()
        for cosine in cosines:
            trust = trust.after(cosine, since=0.0)
        assert trust.settled is settled
