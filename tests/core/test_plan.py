"""Plans: the best there is, or an error that says what can be had."""

import copy
import itertools
import json
import math
import pickle
import re

import attrs
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from magpolicy import (
    ArgumentError,
    Calibration,
    Curve,
    Decision,
    Safeguard,
    Schedule,
    Session,
    expected_errors,
    plan,
    preset,
    trade_off,
)
from magpolicy.calibration._prior import prior_calibration
from magpolicy.testing import strategies

LAWS = settings(max_examples=50, deadline=None)
FORECASTS = ("hold", "linear", "calibrated", "second-order")
ADDITIVE = ("latent", "gap", "relative", "peak")


def masks(count, computed, must=()):
    """Every choice of computed steps that begins with the first."""
    for rest in itertools.combinations(range(1, count), computed - 1):
        if set(must) <= {0, *rest}:
            yield (0, *rest)


def skips(computed, count):
    """(p, j, i) of every skipped step, gap by gap; p is -1 after the first computed step."""
    p = -1
    for j, following in zip(computed, (*computed[1:], count), strict=True):
        yield [(p, j, i) for i in range(j + 1, following)]
        p = j


def brute_cost(found, computed, objective, factors, forecast="calibrated"):
    """The cost of a schedule, written down from the definitions; infinite where a forecast is not known."""
    sizes = -np.diff(found.sigmas, append=0.0)
    share = sizes / sizes.sum()
    names = list(found.streams)
    total = 0.0
    lengths = [combined(found, factors, {n: {i: 1.0} for n in names}) for i in range(found.steps)]
    mean = math.sqrt(sum(lengths) / len(lengths))
    for gap in skips(computed, found.steps):
        along = 0.0
        for p, j, i in gap:
            errors = {}
            for n in names:
                c = found.coefficient(n, p, j, i) if forecast == "calibrated" and p >= 0 else 0.0
                if math.isnan(found.error(n, p if c else j, j, i, c)):
                    return math.inf
                errors[n] = {i: 1.0, j: -(1.0 + c)} | ({p: c} if c else {})
            absolute = math.sqrt(max(combined(found, factors, errors), 0.0))
            weighted = absolute / math.sqrt(lengths[i]) if objective in ("relative", "peak") else share[i] * absolute / mean
            if objective == "gap":
                along += weighted
            else:
                total += weighted ** (4 if objective == "peak" else 2)
        total += along**2
    return total


def combined(found, factors, sums):
    """Squared length of the combination of sums of residuals, one a stream."""
    names = list(sums)
    total = 0.0
    for a, b in itertools.product(names, names):
        if a != b and factors is None:
            continue
        weight = 1 / len(names) if factors is None else factors[a] * factors[b]
        for (i, x), (j, y) in itertools.product(sums[a].items(), sums[b].items()):
            total += weight * x * y * product(found, a, b, i, j)
    return total


def product(found, a, b, i, j):
    if a == b:
        return found.streams[a].gram[max(i, j), abs(i - j)]
    if (a, b) in found.cross:
        table = found.cross[a, b]
        return table[i, table.shape[1] // 2 + j - i]
    table = found.cross[b, a]
    return table[j, table.shape[1] // 2 + i - j]


@LAWS
@given(strategies.calibrations(min_size=2, max_size=8), st.sampled_from(ADDITIVE), st.data())
def test_no_schedule_costs_less_than_the_plan(found, objective, data):
    computed = data.draw(st.integers(1, found.steps))
    forecast = data.draw(st.sampled_from(["calibrated", "hold"]))
    guidance = data.draw(st.sampled_from([None, 3.0])) if len(found.streams) == 2 else None
    factors = None if guidance is None else {"cond": guidance, "uncond": 1 - guidance}
    forced = data.draw(st.sets(st.integers(0, found.steps - 1), max_size=2))
    best = min(
        (brute_cost(found, m, objective, factors, forecast) for m in masks(found.steps, computed, forced)), default=math.inf
    )
    wanted = {"computed": computed, "objective": objective, "forecast": forecast, "guidance": guidance, "forced": forced}
    if math.isinf(best):
        with pytest.raises(ArgumentError, match=f"computed={computed} leaves"):
            plan(found, **wanted)
        return
    chosen = plan(found, **wanted)
    assert chosen.computed == computed
    mine = tuple(i for i, computes in enumerate(chosen.mask) if computes)
    assert set(forced) <= set(mine)
    assert brute_cost(found, mine, objective, factors, forecast) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_a_plan_says_that_rounding_adds_to_errors_that_are_hardly_there():
    residuals = 0.857 + 1e-4 * np.array([0.0, 1.0, 1.9])[:, None, None] * np.array([[1.0, 0.3], [-0.2, 0.9]])
    found = Calibration.from_residuals({"single": residuals}, sigmas=[0.3, 0.2, 0.1])
    chosen = plan(found, computed=2, objective="latent")
    assert chosen.stream_mask("single") == (True, True, False)
    measured = found.error("single", 0, 1, 2, coefficient(found, "single", 0, 1, 2))
    assert chosen.stream_errors("single")[2] == pytest.approx(error(found, "single", 0, 1, 2), rel=1e-3)
    assert chosen.stream_errors("single")[2] > measured


@LAWS
@given(strategies.calibrations(min_size=3, max_size=14), st.data())
def test_a_plan_says_what_the_calibration_says(found, data):
    wanted = data.draw(st.integers(max(1, -(-found.steps // (found.window + 1))), found.steps))
    chosen = plan(found, computed=wanted, objective="latent")
    for name in found.streams:
        p, j = -1, -1
        for i, computes in enumerate(chosen.stream_mask(name)):
            c = chosen.stream_coefficients(name)[i]
            trial = chosen.checks[chosen.streams.index(name)][i]
            if computes:
                assert (c, chosen.stream_errors(name)[i]) == ((), 0)
                if trial is not None:
                    assert trial[0] == pytest.approx(forecast(found, name, p, j, i))
                    assert trial[1] == pytest.approx(error(found, name, p, j, i))
                p, j = j, i
            else:
                assert c == pytest.approx(forecast(found, name, p, j, i))
                assert chosen.stream_errors(name)[i] == pytest.approx(error(found, name, p, j, i), abs=1e-9)
    assert expected_errors(found, chosen) == {n: pytest.approx(chosen.stream_errors(n), abs=1e-6) for n in found.streams}
    again = Schedule.from_dict(json.loads(json.dumps(chosen.to_dict())))
    assert (again, again.coefficients, again.checks) == (chosen, chosen.coefficients, chosen.checks)


def coefficient(found, name, p, j, i):
    return found.coefficient(name, p, j, i) if p >= 0 else 0.0


def forecast(found, name, p, j, i):
    c = coefficient(found, name, p, j, i)
    return (c,) if c else ()


def error(found, name, p, j, i):
    """What is measured, and what rounding of the residuals used (to float32) adds beyond that of a held one."""
    c = coefficient(found, name, p, j, i)
    rounding = 2.0**-24 * math.sqrt(max((1 + c) ** 2 + c**2 - 1, 0.0))
    return math.hypot(found.error(name, p if c else j, j, i, c), rounding)


@LAWS
@given(strategies.calibrations(min_size=2, max_size=14), st.sampled_from((*ADDITIVE, "trajectory")))
def test_more_computed_steps_never_cost_more(found, objective):
    front = trade_off(found, objective=objective)
    assert [s.computed for s in front] == list(range(front[0].computed, found.steps + 1))
    assert front[-1].worst == 0
    if objective in ("latent", "relative"):
        costs = [brute_cost(found, computed(s), objective, None) for s in front]
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))


def computed(schedule):
    return tuple(i for i, computes in enumerate(schedule.mask) if computes)


@LAWS
@given(strategies.calibrations(min_size=2, max_size=16), st.floats(0, 0.5))
def test_a_bound_on_the_error_is_kept_by_as_few_steps_as_can(found, bound):
    chosen = plan(found, error=bound)
    assert chosen.worst <= bound + 1e-12
    for fewer in trade_off(found, objective="latent"):
        if fewer.computed < chosen.computed:
            assert fewer.worst > bound


@pytest.mark.parametrize(("speedup", "count"), [(1.0, 28), (2.0, 14), (2.1, 13), (3.0, 9), (2.5, 11), (28 / 9, 9)])
def test_a_speedup_is_reached(speedup, count):
    chosen = plan(example(28), speedup=speedup)
    assert chosen.computed == count
    assert chosen.speedup >= speedup - 1e-9


def example(steps=28, window=None, streams=("cond", "uncond"), **more):
    sigmas = np.linspace(1, 1 / steps, steps)
    random = np.random.default_rng(3)
    shapes = np.stack([np.ones(steps), sigmas, np.sin(5 * sigmas), np.exp(-9 * sigmas)], axis=1)
    rows = {n: [r.reshape(4, 8) for r in shapes @ random.normal(size=(4, 32))] for n in streams}
    return Calibration.from_residuals(rows, sigmas=sigmas.tolist(), window=window, **more)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no target given: pass one of speedup, computed and error"),
        ({"speedup": 2, "computed": 3}, "speedup=2, computed=3 given: pass one"),
        ({"speedup": 0.5}, "speedup=0.5 must be >= 1"),
        ({"computed": 0}, "computed=0 must be a whole number"),
        ({"computed": 2.5}, "computed=2.5 must be"),
        ({"error": -1}, "error=-1 must be >= 0"),
        ({"speedup": 2, "objective": "best"}, "objective='best' is not known; use one of 'latent'"),
        ({"speedup": 2, "forecast": "magic"}, "forecast='magic' is not known"),
        ({"speedup": 2, "damping": 0.5}, "damping=0.5 is for forecast='linear'"),
        ({"speedup": 2, "guidance": {"cond": 1}}, "leaves out 'uncond'"),
        ({"speedup": 2, "guidance": "x"}, "guidance='x' must be a number"),
        ({"speedup": 2, "weights": [1, 2]}, "weights has 2 values for 28 steps"),
        ({"speedup": 2, "weights": [-1] * 28}, r"weights\[0\]=-1 must be >= 0"),
        ({"speedup": 2, "batched": 3}, "batched=3 is not known"),
        ({"speedup": 2, "batched": False, "objective": "trajectory"}, "objective='trajectory' plans streams jointly"),
        ({"speedup": 2, "forced": [28]}, "forced holds step 28"),
        ({"speedup": 2, "part": (4, 4)}, "part="),
        ({"speedup": 2, "power": 0}, "power=0 must be"),
        ({"speedup": 2, "objective": "trajectory", "power": 3}, "power=3 does not go with objective='trajectory'"),
        ({"speedup": 2, "steps": 3, "sigmas": [1, 0.5]}, "steps=3 contradicts sigmas"),
        (
            {"speedup": 14, "retention": 0.2},
            "speedup=14 leaves 2 of 28 evaluations .* at least .*6 leading steps.*; try speedup=",
        ),
        (
            {"computed": 2, "max_skips": 3},
            r"computed=2 leaves 2 .* at least 7 must \(at most 3 skips in a row\); try computed=7",
        ),
        ({"computed": 2, "forced": [4, 5, 6]}, "3 forced"),
        ({"error": 0.1, "forecast": "second-order"}, r"error=0.1 bounds each step, .*; try forecast='calibrated'"),
        (
            {"speedup": 2, "batched": False, "forecast": "second-order"},
            r"batched=False plans each .*; try forecast='calibrated'",
        ),
        ({"speedup": 99}, r"speedup=99 leaves 0 of 28 evaluations to compute, at least 1 must .*; try speedup=28 or less"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ArgumentError, match=message):
        plan(example(28), **settings)


@LAWS
@given(strategies.calibrations(min_size=2, max_size=12), st.integers(1, 12), st.data())
def test_what_an_error_message_proposes_can_be_had(found, wanted, data):
    settings = {"max_skips": data.draw(st.integers(0, 4)), "retention": data.draw(st.floats(0, 1))}
    try:
        plan(found, computed=min(wanted, found.steps), **settings)
    except ArgumentError as error:
        least = int(str(error).split("try computed=")[1].split()[0])
        assert plan(found, computed=least, **settings).computed == least
        with pytest.raises(ArgumentError):
            plan(found, computed=least - 1, **settings)


def test_the_leading_share_the_forced_and_the_longest_gap_are_kept():
    chosen = plan(example(28), speedup=1.6, retention=0.25, forced=[-1, 13], max_skips=2)
    assert all(chosen.mask[:7])
    assert chosen.mask[27]
    assert chosen.mask[13]
    assert "···" not in chosen.strip


def test_levels_that_were_not_calibrated_compute():
    found = example(28)
    high = plan(found, sigmas=[3.0, 2.0, *found.sigmas], speedup=2)
    assert high.strip.startswith("███")
    with pytest.raises(ArgumentError, match="30 outside the calibrated noise levels"):
        plan(found, sigmas=[3.0] * 30, speedup=2)


def test_a_part_of_a_run_is_planned_as_a_run_of_its_own():
    found = example(28)
    chosen = plan(found, speedup=2, part=(8, 28))
    assert (chosen.first_step, chosen.steps, chosen.computed) == (8, 20, 10)
    assert chosen == plan(found.part(8, 28), speedup=2)
    late = plan(found, speedup=2, part=(8, 28), forced=[9], retention=0.4)
    assert late.mask[:3] == (True, True, True)


def test_guidance_is_what_the_calibration_was_made_with_unless_given():
    plain, told = example(28), example(28, provenance={"guidance": 7.0})
    assert plan(told, computed=9) == plan(plain, computed=9, guidance=7.0)
    assert plan(told, computed=9, guidance=1.0) == plan(plain, computed=9, guidance={"cond": 1.0, "uncond": 0.0})
    renamed = attrs.evolve(plain, streams={"uncond": plain.streams["uncond"], "cond": plain.streams["cond"]})
    assert plan(renamed, computed=9, guidance=7.0) == plan(plain, computed=9, guidance=7.0)
    with pytest.raises(ArgumentError, match="guidance=2 combines two streams, there are 3"):
        plan(example(28, streams=("a", "b", "c")), computed=9, guidance=2.0)
    assert plan(example(28, streams=("a",)), computed=9, guidance=2.0).computed == 9


def test_errors_that_cancel_in_guidance_are_free():
    steps = np.linspace(1, 0.1, 10)
    steady = np.ones((1, 6))
    both = [np.cos(9 * s) * np.arange(6)[None] * (s > 0.5) for s in steps]
    rows = {"cond": [steady + w for w in both], "uncond": [steady + 2 * w for w in both]}
    found = Calibration.from_residuals(rows, sigmas=steps.tolist())
    guided = plan(found, computed=4, guidance=2.0, forecast="hold", objective="latent")  # 2 w - 1 (2 w) = 0
    alone = plan(found, computed=4, forecast="hold", objective="latent")
    assert guided.worst > 0.1
    assert alone != guided
    assert brute_cost(found, computed(guided), "latent", {"cond": 2.0, "uncond": -1.0}, "hold") == pytest.approx(0, abs=1e-9)


@LAWS
@given(strategies.calibrations(min_size=3, max_size=7, streams=2), st.data())
def test_plans_of_single_streams_share_a_budget_best(found, data):
    assume(len(found.streams) == 2)
    names = list(found.streams)
    total = data.draw(st.integers(2, 2 * found.steps))
    best = math.inf
    lone = {n: attrs.evolve(found, streams={n: found.streams[n]}, cross={}) for n in names}
    scale = {n: np.nanmean(found.streams[n].gram[:, 0]) for n in names}
    costs = {
        n: {
            m: scale[n] * brute_cost(lone[n], m, "latent", None)
            for k in range(1, found.steps + 1)
            for m in masks(found.steps, k)
        }
        for n in names
    }
    for a, b in itertools.product(*(costs[n] for n in names)):
        if len(a) + len(b) == total:
            best = min(best, costs[names[0]][a] + costs[names[1]][b])
    speedup = 2 * found.steps / total
    if math.isinf(best):
        with pytest.raises(ArgumentError):
            plan(found, speedup=speedup, batched=False)
        return
    chosen = plan(found, speedup=speedup, batched=False)
    mine = [tuple(i for i, m in enumerate(chosen.stream_mask(n)) if m) for n in names]
    assert sum(map(len, mine)) == total
    assert sum(costs[n][m] for n, m in zip(names, mine, strict=True)) == pytest.approx(best, rel=1e-6, abs=1e-9)


@LAWS
@given(strategies.calibrations(min_size=3, max_size=10), st.sampled_from(["hold", "linear"]), st.data())
def test_the_trajectory_is_no_further_off_than_by_the_plans_it_starts_from(found, forecast, data):
    window = found.window + 1
    wanted = data.draw(st.integers(-(-found.steps // window), found.steps))
    settings = {"computed": wanted, "forecast": forecast}
    improved = trajectory(found, plan(found, **settings, objective="trajectory"))
    for start in ("latent", "gap"):
        assert improved <= trajectory(found, plan(found, **settings, objective=start)) * (1 + 1e-6) + 1e-9


@LAWS
@given(strategies.calibrations(min_size=3, max_size=10), st.sampled_from(["calibrated", "second-order"]), st.data())
def test_no_other_coefficients_leave_the_latent_less_far_off(found, forecast, data):
    found = Calibration.from_residuals(recorded(found.steps, data.draw(st.integers(0, 99))), sigmas=found.sigmas)
    chosen = plan(found, computed=data.draw(st.integers(1, found.steps)), forecast=forecast, objective="trajectory")
    least = trajectory(found, chosen, fading=True)
    assert max(len(c) for row in chosen.coefficients for c in row) <= {"calibrated": 1, "second-order": 2}[forecast]
    held = Schedule.from_mask(dict(zip(chosen.streams, chosen.masks, strict=True)))
    assert least <= trajectory(found, held, fading=True) + 1e-12
    for place, name in enumerate(chosen.streams):
        for i, c in enumerate(chosen.coefficients[place]):
            for o, by in itertools.product(range(len(c)), (-0.05, 0.05)):
                moved = [list(row) for row in chosen.coefficients]
                moved[place][i] = tuple(x + by * (q == o) for q, x in enumerate(c))
                other = attrs.evolve(chosen, coefficients=tuple(map(tuple, moved)))
                assert trajectory(found, other, fading=True) >= least * (1 - 1e-5) - 1e-12, (name, i, o)


def test_a_second_order_forecast_is_exact_where_residuals_are_quadratic_in_the_step():
    steps = np.arange(9)[:, None] / 9
    random = np.random.default_rng(0)
    rows = {n: sum(random.normal(size=40) * steps**power for power in range(3)).reshape(9, 5, 8) for n in ("cond", "uncond")}
    found = Calibration.from_residuals(rows, sigmas=[1 - i / 9 for i in range(9)])
    settings = {"computed": 5, "forced": [0, 1, 2, 4, 7], "guidance": 3.0, "objective": "trajectory"}
    exact, first = (plan(found, **settings, forecast=forecast) for forecast in ("second-order", "calibrated"))
    assert exact.worst < 1e-3 < 0.02 < first.worst
    assert trajectory(found, exact, fading=True) < 1e-5 * trajectory(found, first, fading=True)


def recorded(steps, seed):
    random = np.random.default_rng(seed)
    level = np.linspace(1, 0.1, steps)
    shapes = np.stack([np.ones(steps), level, np.sin(5 * level), np.exp(-4 * level)], axis=1)
    return {n: (shapes @ random.normal(size=(4, 32))).reshape(steps, 4, 8) for n in ("cond", "uncond")}


def trajectory(found, schedule, fading=False):
    """How far the latent is taken off its way, from the definition; errors too far apart to compare are orthogonal.

    As plans compare schedules by it, or ``fading``, as their coefficients are fitted to it.
    """
    sizes = -np.diff(found.sigmas, append=0.0) / found.sigmas[0]
    reached = [*found.sigmas[1:], found.sigmas[-1] / 2]
    total = 0.0
    for name in found.streams:
        errors, history = [], []
        for i, computes in enumerate(schedule.stream_mask(name)):
            if computes:
                history = [i, *history]
                continue
            row = {i: 1.0, history[0]: -1.0}
            for o, c in enumerate(schedule.stream_coefficients(name)[i]):
                row[history[o]] = row.get(history[o], 0.0) - c
                row[history[o + 1]] = row.get(history[o + 1], 0.0) + c
            errors.append((i, row))
        for (i, one), (m, other) in itertools.product(errors, errors):
            if fading:
                share = min(reached[i], reached[m]) / max(reached[i], reached[m]) + 0.03 * (i == m)
            else:
                share = 1 + sum(sizes[max(i, m) :]) + 0.1 * (i == m)
            terms = [x * y * product_or_nan(found, name, a, b) for a, x in one.items() for b, y in other.items()]
            total += np.nan_to_num(sizes[i] * sizes[m] * share * sum(terms)) / len(found.streams)
    return total


def product_or_nan(found, name, i, j):
    gram = found.streams[name].gram
    return gram[max(i, j), abs(i - j)] if abs(i - j) < gram.shape[1] else math.nan


def test_the_trajectory_is_for_runs_of_usual_length():
    with pytest.raises(ArgumentError, match="plans at most 200 steps, this run has 201"):
        plan(example(201, window=4), speedup=2, objective="trajectory")
    with pytest.raises(ArgumentError, match="forecast='second-order' plans at most 200 steps; try forecast='calibrated'"):
        plan(example(201, window=4), speedup=2, forecast="second-order")


def test_weights_move_computed_steps_to_where_they_count():
    late = plan(example(28), computed=9, weights=[0.01] * 14 + [1] * 14)
    assert sum(late.mask[14:]) > sum(plan(example(28), computed=9).mask[14:])


# From ratios alone.

RATIOS = [1.0, 1.1, 1.05, 1.0, 0.99, 0.98, 0.97, 0.95, 0.9, 0.8]


@LAWS
@given(strategies.curves(max_size=12), st.integers(1, 12), st.sampled_from(["hold", "linear", "calibrated", "second-order"]))
def test_ratios_alone_are_planned_by_their_growth_and_the_general_prior(curve, wanted, forecast):
    wanted = min(wanted, curve.steps)
    chosen = plan(curve, computed=wanted, forecast=forecast)
    assert chosen.computed == wanted
    levels = np.asarray(curve.levels)
    for name in curve.streams:
        lengths = np.cumprod(curve.of(name))
        expected = prior_calibration(None, levels=levels.tolist()).streams["single"].gram
        cosines = np.array([[expected[max(i, j), abs(i - j)] for j in range(len(levels))] for i in range(len(levels))])
        at = lengths[:, None] * np.linalg.cholesky(cosines + 1e-12 * np.eye(len(levels)))  # residuals with these products
        computed: list[int] = []
        for i, computes in enumerate(chosen.mask):
            if computes:
                computed.insert(0, i)
                continue
            c = chosen.stream_coefficients(name)[i]
            made = at[computed[0]] + sum(c[n] * (at[computed[n]] - at[computed[n + 1]]) for n in range(len(c)))
            true = np.linalg.norm(at[i] - made) / np.linalg.norm(at[i])
            assert chosen.stream_errors(name)[i] == pytest.approx(true, rel=1e-3, abs=1e-4)
            if forecast in ("hold", "linear"):
                j, p = computed[0], computed[1] if len(computed) > 1 else None
                line = () if forecast == "hold" or p is None else ((levels[i] - levels[j]) / (levels[j] - levels[p]),)
                assert c == pytest.approx(line)


def test_ratios_alone_take_every_forecast():
    for forecast in ("calibrated", "second-order", "linear", None):
        assert any(plan(RATIOS, speedup=2, forecast=forecast).coefficients[0])
    assert plan(RATIOS, speedup=2) == plan(RATIOS, speedup=2, forecast="second-order")
    assert plan(RATIOS, speedup=2, forecast="linear", damping=0.0).coefficients == (((),) * 10,)
    assert plan(RATIOS, speedup=2, forecast="hold").coefficients == (((),) * 10,)
    assert plan({"cond": RATIOS, "uncond": RATIOS}, speedup=2).streams == ("cond", "uncond")


def test_a_published_rules_retention_and_longest_run_of_skips_do_not_bind_a_plan_but_its_experts_do():
    flux = preset("flux.1-dev")
    chosen = plan("flux.1-dev", steps=40, speedup=2)
    assert (chosen.steps, chosen.computed) == (40, 20)
    assert not all(chosen.mask[: int(flux.retention * 40 + 0.5)])
    assert plan("wan2.2-t2v-a14b", speedup=4).computed == 10  # K=2 and R=0.4 would have made it 2.2x at most
    asked = plan("flux.1-dev", steps=40, speedup=2, retention=flux.retention, max_skips=flux.max_skips)
    assert all(asked.mask[: int(flux.retention * 40 + 0.5)])
    assert "·" * (flux.max_skips + 1) not in asked.strip
    wan = preset("wan2.2-t2v-a14b")
    two = plan(wan, speedup=1.5)
    assert two.mask[wan.expert_step(wan.steps)]
    assert plan(wan, speedup=1.5, expert_step=11).mask[11]
    assert plan(Curve(RATIOS), sigmas=np.linspace(1, 0.2, 16).tolist(), speedup=2).steps == 16


@pytest.mark.parametrize("settings", [{}, {"batched": False}, {"part": (8, 50)}, {"objective": "latent"}], ids=str)
def test_a_plan_is_plain_data(settings):
    found = example(50)
    chosen = plan(found, speedup=2.5, **settings)
    pickled, text = pickle.dumps(chosen), json.dumps(chosen.to_dict())
    assert len(pickled) < 20_000
    assert len(text) < 20_000
    assert not re.search(rb"magpolicy\.\w", pickled), "it names nothing that is not public"
    for again in (copy.deepcopy(chosen), pickle.loads(pickled), Schedule.from_dict(json.loads(text))):
        assert again == chosen
        assert attrs.asdict(again) == attrs.asdict(chosen)
        assert expected_errors(found, again) == expected_errors(found, chosen)
    first = settings.get("part", (0, 50))[0]
    assert chosen.sigmas == found.sigmas[first:]


def test_reasons_are_a_schedules():
    assert plan(example(28), speedup=2).reasons("cond") == {
        Decision.SCHEDULED.reason: 14,
        Decision.REUSED.reason: 14,
    }


def test_errors_expected_of_any_schedule():
    found = example(28)
    rule = Schedule.from_mask([i % 3 == 0 for i in range(28)])
    errors = expected_errors(found, rule)
    assert errors["cond"][5] == pytest.approx(found.hold_error("cond", 3, 5))
    assert errors["uncond"][27] == 0
    assert expected_errors(example(28, window=1), rule)["cond"][5] == math.inf
    fine = expected_errors(found, Schedule.from_mask([i % 3 == 0 for i in range(40)]))
    assert len(fine["cond"]) == 40
    with pytest.raises(ArgumentError, match="schedule has 28 steps, the run 20"):
        expected_errors(found, rule, steps=20)


# Planned again.


@pytest.mark.parametrize("settings", [{}, {"part": (6, 28)}, {"sigmas": [1 - i / 20 for i in range(20)]}], ids=str)
def test_a_given_plan_is_planned_again_from_its_calibration(settings):
    found = example(28)
    chosen = plan(found, speedup=3.0, **settings)
    computed = [i for i, computes in enumerate(chosen.mask) if computes]
    at = computed[2]
    for again in (chosen, pickle.loads(pickle.dumps(chosen))):
        guard = Safeguard(plan=again, calibration=found, floor=0.0)
        replan = guard.compare("cond", again.first_step + at, 4 * again.checks[0][at][1])
        assert replan.outcome == "replanned"
        rest = replan.schedule
        assert (rest.first_step, rest.steps, rest.sigmas) == (again.first_step, again.steps, again.sigmas)
        assert rest.computed >= again.computed
        for rows, planned in ((rest.coefficients, again.coefficients), (rest.modelled, again.modelled)):
            assert [row[: at + 1] for row in rows] == [row[: at + 1] for row in planned], "what is over stays as it was"
        errors = expected_errors(found, rest)
        assert {n: e[at + 1 :] for n, e in errors.items()} == {
            n: pytest.approx(rest.stream_errors(n)[at + 1 :], abs=1e-6) for n in rest.streams
        }


def test_a_mask_of_ones_own_is_planned_again_and_holds():
    found = example(28)
    mine = Schedule.from_mask([i % 4 == 0 for i in range(28)], checks={"single": [None] * 8 + [((), 0.01)] + [None] * 19})
    rest = Safeguard(plan=mine, calibration=found).compare("single", 8, 0.5).schedule
    assert rest.mask[:9] == mine.mask[:9]
    assert not any(map(any, rest.coefficients))


def test_without_a_calibration_the_rest_computes():
    chosen = plan(example(28), speedup=3.0)
    at = [i for i, computes in enumerate(chosen.mask) if computes][2]
    replan = Safeguard(plan=chosen).compare("cond", at, 9.0)
    assert (replan.outcome, replan.schedule.mask[at:]) == ("computes", (True,) * (28 - at))
    with pytest.raises(ArgumentError, match="calibration=3 must be a Calibration; leave it out"):
        Safeguard(plan=chosen, calibration=3)


@pytest.mark.parametrize(("name", "speedup"), [("quality", 1.5), ("balanced", 2.0), ("fast", 3.0)])
def test_a_speedup_has_a_name(name, speedup):
    assert plan("flux.1-dev", speedup=name) == plan("flux.1-dev", speedup=speedup)
    with Session("flux.1-dev", steps=28, speedup=name) as session:
        assert session.schedule == plan("flux.1-dev", steps=28, speedup=speedup)


@pytest.mark.parametrize(
    ("name", "suggested"), [("Fast", "fast"), ("balance", "balanced"), ("high-quality", "quality"), ("2.0", "balanced")]
)
def test_a_speed_that_is_not_known_is_one_clear_error(name, suggested):
    for ask in (plan, lambda source, speedup: Session(source, steps=28, speedup=speedup)):
        with pytest.raises(ArgumentError, match=rf"speedup='{name}' must be a number or one of .*; try '{suggested}'$"):
            ask("flux.1-dev", speedup=name)


@pytest.mark.parametrize("speedup", [2.0, 3.0])
def test_the_second_expert_is_where_it_is_said_or_else_where_the_preset_has_it(speedup):
    def planned(**more):
        schedule = plan("wan2.2-t2v-a14b", steps=20, speedup=speedup, **more)
        return schedule.mask, schedule.coefficients, schedule.modelled

    own = preset("wan2.2-t2v-a14b").expert_step(20, None)
    assert planned() == planned(expert_step=own)
    for first in {5, 12} - {own}:
        assert planned(expert_step=first)[0][first]
        assert planned(expert_step=first) != planned()
