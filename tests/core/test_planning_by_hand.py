"""The pieces that plans are made of, against cases computed by hand."""

import itertools

import numpy as np
import pytest

from magpolicy import ArgumentError, Calibration, Curve, Schedule, expected_errors, plan, preset
from magpolicy.adapter import resolve
from magpolicy.calibration._gram import inner
from magpolicy.planning._at_levels import at_levels
from magpolicy.planning._error_tables import at_skipped
from magpolicy.planning._guidance import stream_factors
from magpolicy.planning._local_search import evenly, improve, neighbours
from magpolicy.planning._objective import LONGEST, OBJECTIVES
from magpolicy.planning._planner import TargetError, solve, solve_all
from magpolicy.planning._problem import LONG_RUN, PlanRequest
from magpolicy.planning._shortest_path import shortest_paths
from magpolicy.planning._skip_costs import _SumOfGaps, cheapest_paths, forbidden_skips, gap_costs_of, ranking
from magpolicy.planning._target import PlanTarget


def calibration(steps=6, streams=("single",), window=None, **provenance):
    dice = np.random.default_rng(0)
    rows = {name: list(np.cumsum(dice.normal(size=(steps, 1, 8)), axis=0)) for name in streams}
    more = {} if window is None else {"window": window}
    return Calibration.from_residuals(rows, sigmas=[1 - i / steps for i in range(steps)], provenance=provenance, **more)


def problem(source, **target):
    return PlanRequest(source=source, target=PlanTarget(**target)).problem()


@pytest.mark.parametrize(
    ("count", "computed", "expected"),
    [
        (1, 1, (0,)),
        (5, 1, (0,)),
        (6, 2, (0, 1)),
        (10, 4, (0, 1, 5, 9)),
        (5, 5, (0, 1, 2, 3, 4)),
        (2, 2, (0, 1)),
        (9, 3, (0, 1, 8)),
    ],
)
def test_evenly_spaced_steps(count, computed, expected):
    assert evenly(count, computed) == expected


def test_neighbours_are_one_step_moved_by_up_to_two_the_nearest_first():
    assert list(neighbours((0, 2, 5), 7)) == [
        (0, 1, 5), (0, 3, 5), (0, 4, 5),
        (0, 2, 4), (0, 2, 6), (0, 2, 3),
    ]  # fmt: skip
    assert list(neighbours((0, 2, 5), 7, far=1)) == [(0, 1, 5), (0, 3, 5), (0, 2, 4), (0, 2, 6)]
    assert list(neighbours((0, 2, 5), 7, indices=(2,))) == [(0, 2, 4), (0, 2, 6), (0, 2, 3)]
    assert list(neighbours((0, 1), 3)) == [(0, 2)], "a step that moves past another is sorted in; none goes to where one is"
    assert list(neighbours((0, 1, 2), 4)) == [(0, 2, 3), (0, 1, 3)]
    assert list(neighbours((0, 6), 7)) == [(0, 5), (0, 4)], "none lies behind the end"
    assert list(neighbours((0,), 4)) == []


def test_small_moves_lead_to_the_least_there_is_on_the_way():
    def cost(computed):
        return 1.0 + sum((a - b) ** 2 for a, b in zip(computed, (0, 4, 7, 9), strict=True))

    def all_right(computed):
        return True

    assert improve((0, 1, 2, 3), cost, all_right, 10) == ((0, 4, 7, 9), 1.0)
    assert improve((0, 4, 7, 9), cost, all_right, 10) == ((0, 4, 7, 9), 1.0)
    assert improve((0, 1, 2, 3), lambda computed: cost(computed) / 1e6, all_right, 10) == ((0, 4, 7, 9), 1e-6)
    found, least = improve((0, 1, 2, 3), cost, lambda computed: computed[1] <= 2, 10)
    assert (found, least) == ((0, 2, 7, 9), 5.0)
    assert improve((0, 1), lambda computed: 1.0 - 1e-10 * computed[1], all_right, 10)[0] == (0, 1), "rounding is no gain"


@pytest.mark.parametrize(
    ("names", "guidance", "expected"),
    [
        (("cond", "uncond"), 3.0, {"cond": 3.0, "uncond": -2.0}),
        (("uncond", "cond"), 3.0, {"uncond": -2.0, "cond": 3.0}),
        (("negative", "positive"), 3, {"negative": -2.0, "positive": 3.0}),
        (("UNCOND", "a"), 3.0, {"UNCOND": -2.0, "a": 3.0}),
        (("a", "b"), 3.0, {"a": 3.0, "b": -2.0}),
        (("uncond", "neg"), 3.0, {"uncond": 3.0, "neg": -2.0}),
        (("a", "negative"), 0.5, {"a": 0.5, "negative": 0.5}),
        (("a",), 3.0, None),
        (("a",), {"a": 2.0}, {"a": 2.0}),
        (("a", "b", "c"), {"a": 2.0, "b": -1, "c": 0}, {"a": 2.0, "b": -1.0, "c": 0.0}),
        (("a", "b"), None, None),
    ],
    ids=str,
)
def test_what_guidance_multiplies_streams_with(names, guidance, expected):
    assert stream_factors(guidance, calibration(streams=names)) == expected


def test_guidance_that_a_calibration_was_made_with():
    assert stream_factors(None, calibration(streams=("cond", "uncond"), guidance=4.0)) == {"cond": 4.0, "uncond": -3.0}
    assert stream_factors(None, calibration(streams=("cond", "uncond"), guidance=4)) == {"cond": 4.0, "uncond": -3.0}
    assert stream_factors(2.0, calibration(streams=("cond", "uncond"), guidance=4.0)) == {"cond": 2.0, "uncond": -1.0}
    for streams, scale in ((("cond", "uncond"), True), (("cond", "uncond"), "4"), (("a",), 4.0), (("a", "b", "c"), 4.0)):
        assert stream_factors(None, calibration(streams=streams, guidance=scale)) is None


def test_guidance_that_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="combines two streams, there are 3"):
        stream_factors(3.0, calibration(streams=("a", "b", "c")))
    with pytest.raises(ArgumentError, match="leaves out 'b', 'c'; give a factor for each stream"):
        stream_factors({"a": 1.0}, calibration(streams=("a", "b", "c")))
    for wrong in ("x", float("nan"), True):
        with pytest.raises(ArgumentError, match="guidance"):
            stream_factors(wrong, calibration(streams=("a", "b")))


def costs_of(choice, costs, start=(0, 0)):
    """The cost of computing these, gap by gap."""
    (before, j), total = start, 0.0
    for at in (*choice[1:], costs.shape[1]):
        total += costs[before, j, at - j]
        before, j = at - j, at
    return total


@pytest.mark.parametrize("start", [(0, 0), (2, 3)])
@pytest.mark.parametrize("reach", [2, 4, 7, 9])
def test_the_shortest_path_is_the_least_of_all_choices(reach, start):
    count, dice = 7, np.random.default_rng(reach)
    costs = dice.uniform(size=(reach + 1, count, reach + 1))
    costs[:, :, 1] = 0.0
    costs[1, 4, 2] = np.inf
    found = shortest_paths(costs, count, start)
    first = start[1]
    for length in range(1, count - first + 1):
        choices = [(first, *rest) for rest in itertools.combinations(range(first + 1, count), length - 1)]
        usable = [c for c in choices if max(b - a for a, b in itertools.pairwise((*c, count))) <= reach]
        least = min((costs_of(c, costs, start) for c in usable), default=np.inf)
        if np.isinf(least):
            assert length not in found
            continue
        assert found[length].cost == pytest.approx(least)
        assert costs_of(found[length].computed, costs, start) == pytest.approx(least)
    assert max(found) == count - first
    assert list(shortest_paths(costs, 5, start)) == [length for length in found if length <= 5]


def test_a_sum_over_gaps_is_what_the_shortest_path_makes_least():
    run = problem(calibration(), computed=3, max_skips=3)
    costs = gap_costs_of(run, OBJECTIVES["latent"], forbidden_skips(run))
    total = _SumOfGaps(costs)
    for path in cheapest_paths(run, OBJECTIVES["latent"], forbidden_skips(run), 6).values():
        assert total(path.computed) == pytest.approx(path.cost)
    assert np.isfinite(total((0, 2)))
    assert total((0, 1)) == np.inf, "more than three in a row"


def test_what_may_be_skipped():
    run = problem(calibration(), computed=3, forced=[3])
    forbidden = forbidden_skips(run)
    relative = run.errors.relative("single")
    for j, k in itertools.product(range(6), range(1, 6)):
        assert forbidden[0, j, k] == (j + k == 3 or j + k >= 6 or np.isinf(relative[0, j, k]))
    bound = float(np.sort(relative[np.isfinite(relative)])[10])
    at_most = forbidden_skips(run, bound)
    assert np.array_equal(at_most[:, :3, 1], (relative > bound)[:, :3, 1] | forbidden[:, :3, 1])
    assert not at_most[np.where(relative == bound)].all(), "as much as the bound is allowed"


@pytest.mark.parametrize(
    ("target", "evaluations", "budget"),
    [
        ({"computed": 3}, 10, 3),
        ({"computed": 30}, 10, 30),
        ({"speedup": 2.0}, 11, 5),
        ({"speedup": 1.1}, 11, 10),  # 11 / 1.1 is 9.999...
        ({"speedup": 3}, 2, 0),
        ({"error": 0.1}, 10, None),
    ],
    ids=str,
)
def test_how_many_may_compute(target, evaluations, budget):
    assert PlanTarget(**target).budget(evaluations) == budget


def test_how_long_a_gap_may_be():
    assert problem(calibration(6), computed=3).longest_gap == 6
    assert problem(calibration(6, window=2), computed=3).longest_gap == 3
    assert problem(calibration(6), computed=3, max_skips=0).longest_gap == 1
    assert problem(calibration(6), computed=3, max_skips=2).longest_gap == 3
    assert problem(calibration(6), computed=3, max_skips=9).longest_gap == 6
    long = calibration(LONG_RUN)
    longer = calibration(LONG_RUN + 8)
    assert problem(long, computed=20).longest_gap == LONG_RUN
    # Six times the mean gap between those that may be chosen, and six more.
    assert problem(longer, computed=25).longest_gap == int(6 * 47 / 24) + 6
    assert problem(longer, computed=25, forced=[3, 4, 9]).longest_gap == int(6 * 44 / 21) + 6
    assert problem(longer, computed=25, max_skips=4).longest_gap == 5
    assert problem(longer, error=0.1).longest_gap == LONG_RUN + 8
    assert problem(longer, computed=1).longest_gap == LONG_RUN + 8
    assert problem(longer, speedup=2, batched=False).longest_gap == LONG_RUN + 8


def test_what_computes_whatever_the_plan():
    assert problem(calibration(10), computed=5).must_compute == {0}
    for retention, leading in ((0.0, 1), (0.14, 1), (0.15, 2), (0.24, 2), (0.25, 3), (1.0, 10)):
        assert problem(calibration(10), speedup=1, retention=retention).must_compute == set(range(leading))
    run = problem(calibration(10), computed=5, retention=0.2, forced=[-1, 4, 0], expert_step=6, max_skips=4)
    assert run.must_compute == {0, 1, 4, 6, 9}
    assert run.limits == "at most 4 skips in a row, 2 leading steps of retention=0.2, 3 forced"
    assert problem(calibration(10), computed=5, expert_step=10).must_compute == {0}
    assert problem(calibration(10), computed=5, retention=0.14).limits == "at most 9 skips in a row"
    part = PlanRequest(source=calibration(10), target=PlanTarget(computed=3, forced=[1, 5, 9]), part=(4, 8)).problem()
    assert (part.must_compute, part.first_step, part.count) == ({1}, 4, 4)
    assert part.step_sizes == pytest.approx([0.1] * 4)
    weighted = PlanRequest(source=calibration(4), target=PlanTarget(computed=3, weights=[1, 0, 2, 3])).problem()
    assert weighted.step_sizes == pytest.approx([0.25, 0.0, 0.5, 0.75])
    for wrong in ([1, 2, 3], [1, 2, 3, -1]):
        with pytest.raises(ArgumentError, match="weights"):
            PlanRequest(source=calibration(4), target=PlanTarget(computed=3, weights=wrong)).problem()


@pytest.mark.parametrize("guidance", [None, 3.0, {"cond": -0.5, "uncond": 2.0}], ids=str)
@pytest.mark.parametrize("forecast", ["hold", "linear", "calibrated"])
def test_the_error_of_a_combination_is_that_of_the_residuals_combined(forecast, guidance):
    dice = np.random.default_rng(0)
    rows = {name: 0.1 * np.cumsum(dice.normal(size=(6, 1, 8)), axis=0) for name in ("cond", "uncond")}
    levels = [1.0, 0.8, 0.7, 0.4, 0.3, 0.1]
    source = Calibration.from_residuals({name: list(row) for name, row in rows.items()}, sigmas=levels)
    tables = problem(source, computed=3, forecast=forecast, guidance=guidance).errors
    squared, size = tables.combined()
    factors = stream_factors(guidance, source)

    def combined(of_stream):
        each = {name: of_stream(name, row[:, 0]) for name, row in rows.items()}
        if factors is None:
            return sum(e @ e for e in each.values()) / 2 / 8
        total = sum(factors[name] * e for name, e in each.items())
        return total @ total / 8

    for a, j, k in itertools.product(range(6), range(6), range(1, 6)):
        if a > j or j + k > 5:
            continue

        def error(name, row, a=a, j=j, k=k):
            c = tables.forecasts[name].coefficient[a, j, k]
            if forecast == "linear" and a:
                assert c == pytest.approx((levels[j + k] - levels[j]) / (levels[j] - levels[j - a]))
            return row[j + k] - row[j] - c * (row[j] - row[j - a])

        assert squared[a, j, k] == pytest.approx(combined(error), rel=1e-6)
    for i in range(6):
        assert size[i] == pytest.approx(combined(lambda name, row, i=i: row[i]))


def test_the_combination_is_found_whichever_way_round_the_streams_were_measured():
    dice = np.random.default_rng(1)
    rows = {name: list(np.cumsum(dice.normal(size=(5, 1, 8)), axis=0)) for name in ("cond", "uncond")}
    there, back = (
        problem(
            Calibration.from_residuals({name: rows[name] for name in names}, sigmas=[1, 0.8, 0.6, 0.4, 0.2]),
            computed=3,
            guidance={"cond": 3.0, "uncond": -2.0},
        ).errors
        for names in (("cond", "uncond"), ("uncond", "cond"))
    )
    assert there.combined()[0] == pytest.approx(back.combined()[0])
    order = [*range(5, 10), *range(5)]
    assert there.quadratic_form() == pytest.approx(back.quadratic_form()[np.ix_(order, order)])


def test_errors_of_a_schedule_are_those_at_its_own_levels():
    source = calibration(6)
    levels = [1.0, 0.7, 0.45, 0.2]
    schedule = plan(source, sigmas=levels, computed=2)
    assert expected_errors(source, schedule) == expected_errors(source, schedule, sigmas=levels)
    assert expected_errors(source, schedule) != expected_errors(source, schedule, steps=4)
    bare = Schedule.from_mask(schedule.mask)
    assert expected_errors(source, bare) == expected_errors(source, bare, steps=4)


@pytest.mark.parametrize(
    ("steps", "target", "words", "least"),
    [
        (7, {"speedup": 5, "max_skips": 2}, "speedup=5 leaves 1 of 7 .* at least 3 must .*; try speedup=2.33 or less", 3),
        (7, {"computed": 2, "max_skips": 2}, "computed=2 leaves 2 of 7 .* at least 3 must .*; try computed=3 or more", 3),
        (7, {"speedup": 5, "max_skips": 2, "batched": False}, "leaves 2 of 14 .* least 6 must .*; try speedup=2.33 or less", 3),
        (7, {"computed": 2, "max_skips": 2, "batched": False}, "leaves 4 of 14 .* least 6 must .*; try computed=3 or more", 3),
        (7, {"computed": 8}, "computed=8 is more than the 7 evaluations of the run; try computed=7 or less", 7),
    ],
    ids=str,
)
def test_what_can_be_had_in_place_of_a_target(steps, target, words, least):
    with pytest.raises(TargetError, match=words) as raised:
        solve(problem(calibration(steps, ("cond", "uncond")), **target), PlanTarget(**target))
    assert raised.value.least == least


@pytest.mark.parametrize("first", [0, 2])
def test_the_errors_expected_of_a_schedule_are_those_of_its_residuals(first):
    rows = np.cumsum(np.random.default_rng(0).normal(size=(8, 8)), axis=0)
    source = Calibration.from_residuals([row[None] for row in rows])
    forecasts = [(), (), (0.5,), (), (-0.5, 0.25), (2.0,)]
    schedule = Schedule.from_mask([1, 1, 0, 1, 0, 0], coefficients=forecasts, first_step=first)
    skipped = {2: (1.5, -0.5, 0.0), 4: (0.5, 0.75, -0.25), 5: (3.0, -2.0, 0.0)}  # on the residuals before, newest first
    for at, error in enumerate(expected_errors(source, schedule, steps=first + 6)["single"]):
        if at not in skipped:
            assert error == 0
            continue
        run = source.resample(steps=first + 6)
        places = [first + at, *(first + i for i in reversed(range(at)) if schedule.mask[i])]
        weights = [1.0, *(-w for w in skipped[at])][: len(places)]
        gram = np.array([[inner(run.streams["single"].gram, i, j) for i in places] for j in places], dtype=float)
        weights += [0.0] * (len(places) - len(weights))
        assert error == pytest.approx(np.sqrt(weights @ gram @ weights / gram[0, 0]))


@pytest.mark.parametrize("objective", ["latent", "trajectory"])
def test_a_schedule_of_every_number_of_steps_or_the_fewest_that_keep_an_error(objective):
    run = problem(calibration(), objective=objective)
    every = solve_all(run, PlanTarget(objective=objective))
    assert [schedule.computed for schedule in every] == [1, 2, 3, 4, 5, 6]
    for bound in (0.3, 0.6, 0.9):
        costs = np.zeros((7, 6, 7))
        costs[:, :, 2:] = np.cumsum(forbidden_skips(run, bound)[:, :, 1:-1], axis=2)  # how many in a gap are not allowed
        choices = [(0, *rest) for size in range(6) for rest in itertools.combinations(range(1, 6), size)]
        kept = min(len(choice) for choice in choices if costs_of(choice, costs) == 0)
        assert solve(run, PlanTarget(objective=objective, error=bound)).computed == kept


def test_speedups_by_name():
    assert [PlanTarget(speedup=name).speedup for name in ("quality", "balanced", "fast")] == [1.5, 2.0, 3.0]


def test_values_of_skipped_steps_are_0_past_the_end_and_where_not_known():
    values = np.array([5.0, np.nan, 7.0])
    found = at_skipped(values, (2, 3, 4))
    for _, j, k in itertools.product(range(2), range(3), range(4)):
        assert found[0, j, k] == {0: 5.0, 2: 7.0}.get(j + k, 0.0)
    assert found.shape == (1, 3, 4)


def test_of_which_models_nothing_at_all_is_known():
    for source, guess in ((None, True), ("flux.1-dev", False), (Curve([1.0, 0.9, 1.1]), False), (calibration(), False)):
        assert at_levels(source, 3, None).is_a_guess is guess


def test_how_long_a_gap_of_a_part_may_be():
    longer = calibration(96)

    def gap(**target):
        return PlanRequest(source=longer, target=PlanTarget(**target), part=(48, 96)).problem().longest_gap

    assert gap(computed=10) == int(6 * 48 / 10) + 6
    assert gap(computed=10, forced=[3, 48, 60]) == int(6 * 46 / 8) + 6


@pytest.mark.parametrize("more", [0, 1])
def test_runs_too_long_for_the_trajectory_are_ranked_by_single_errors(more):
    run = problem(calibration(LONGEST + more, window=1), computed=LONGEST)
    assert isinstance(ranking(run), _SumOfGaps) is bool(more)
    assert run.fit_together is not bool(more)
    if more:
        with pytest.raises(ArgumentError, match="plans at most 200 steps, this run has 201; try objective='latent'"):
            solve(run, PlanTarget(computed=LONGEST, objective="trajectory"))


@pytest.mark.parametrize(
    ("name", "least", "most", "outside"),
    [
        ("retention", 0, 1, (-0.01, 1.01)),
        ("damping", 0, 1, (-0.01, 1.01)),
        ("error", 0, 9.0, (-0.01,)),
        ("max_skips", 0, 9, (-1,)),
        ("computed", 1, 9, (0,)),
        ("speedup", 1, 9, (0.99,)),
        ("expert_step", 0, 9, (-1,)),
    ],
)
def test_how_large_settings_of_a_plan_may_be(name, least, most, outside):
    more = {"forecast": "linear"} if name == "damping" else {}
    for value in (least, most):
        assert getattr(PlanTarget(**{name: value}, **more), name) == value
    for value in outside:
        with pytest.raises(ArgumentError, match=f"{name}={value} must be"):
            PlanTarget(**{name: value}, **more)


def test_plans_of_more_streams_and_of_what_runs_taught():
    two = resolve({"cond": [1.0, 1.1, 0.9], "uncond": [1.0, 0.9, 1.1]}, speedup=1.5)
    assert two.with_streams({"uncond 2": "uncond"}).streams == ("cond", "uncond", "uncond 2")
    assert two.with_streams({"cond": "cond"}) is two
    measured, named = calibration(), preset("flux.1-dev")
    assert (resolve(measured, speedup=1.5).given, resolve(named, speedup=1.5).given) == (measured, named)
    assert two.given == two.curve
    levels = (1.0, 0.8, 0.5, 0.2)
    assert resolve(measured, speedup=1.5).prepare(4, levels).request.source is measured, "what is measured is resampled"
    unknown = resolve(None, speedup=1.5)
    assert unknown.given is None
    assert unknown.with_streams({"uncond 2": "uncond"}) is unknown
    assert unknown.length(7, None) == (7, None)
