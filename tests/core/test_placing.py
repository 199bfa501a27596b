"""Where hosts' runs lie on the noise schedule, and how the rule, a plan and a schedule are told of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpolicy import Calibration, Curve, Schedule, plan, preset, simulate
from magpolicy.adapter import ScheduleSpan, always_compute, place, resolve

RULE = {"threshold": 0.2, "max_skips": 3, "retention": 0.2}
LEVELS = (1.0, 0.9, 0.75, 0.6, 0.4, 0.2)
RATIOS = (1.0, 1.02, 0.98, 1.05, 0.96, 1.01)
MEASURED = resolve(Curve(RATIOS, sigmas=LEVELS), **RULE)
ASSUMED = resolve(RATIOS, **RULE)
TWO_EXPERTS = "wan2.2-t2v-a14b"


def whole(levels=LEVELS, **how):
    return ScheduleSpan(tuple(1 - i / len(levels) for i in range(len(levels))), tuple(levels), **how)


def test_a_measured_curve_is_read_by_noise_level():
    placed = place(MEASURED, whole((0.95, 0.7, 0.3)))
    assert (placed.steps, placed.sigmas, placed.first) == (None, (0.95, 0.7, 0.3), 0)
    assert placed.simulate() == simulate(Curve(RATIOS, sigmas=LEVELS), sigmas=[0.95, 0.7, 0.3], **RULE)


def test_levels_that_differ_by_rounding_are_those_of_the_curve():
    assert place(MEASURED, whole([level + 3e-8 for level in LEVELS])).sigmas == LEVELS
    assert place(MEASURED, whole([*LEVELS[:-1], 0.21])).sigmas[-1] == 0.21


def test_assumed_levels_are_shares_and_even_steps_a_number():
    placed = place(ASSUMED, whole())
    assert (placed.steps, placed.sigmas) == (6, None)
    uneven = ScheduleSpan((1.0, 1.0, 0.5, 0.5), (1.0, 0.9, 0.5, 0.3), even=False)
    assert place(ASSUMED, uneven).sigmas == (1.0, 1.0, 0.5, 0.5)


def test_uneven_steps_of_a_measured_curve_are_read_by_noise_level_too():
    uneven = ScheduleSpan((1.0, 1.0, 0.5, 0.5), (0.9, 0.85, 0.5, 0.3), even=False)
    assert place(MEASURED, uneven).sigmas == (0.9, 0.85, 0.5, 0.3)


def test_a_measured_curve_where_no_level_is_known_takes_the_number():
    placed = place(MEASURED, ScheduleSpan((1.0, 0.75, 0.5, 0.25), ()))
    assert (placed.steps, placed.sigmas) == (4, None)


@pytest.mark.parametrize(
    "config",
    [resolve(Schedule.from_mask([1, 0, 1])), resolve(RATIOS, **RULE, semantics="official/flux")],
    ids=["schedule", "rule"],
)
def test_what_counts_steps_counts_those_of_this_run(config):
    placed = place(config, ScheduleSpan((0.6, 0.4, 0.2), (0.6, 0.4, 0.2), first=2))
    assert (placed.steps, placed.sigmas, placed.first) == (3, None, 0)
    assert placed.session().steps == 3


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_part_of_a_schedule_keeps_its_positions(first, after):
    span = ScheduleSpan((0.6, 0.4, 0.2), (0.6, 0.4, 0.2), first, after)
    for config in (MEASURED, ASSUMED, always_compute()):
        placed = place(config, span)
        session = placed.session()
        assert (placed.first, session.steps) == (first, first + 3 + after)
        session.begin(placed.first)
        session.end()
        assert placed.simulate().first_step == first
    levels = place(MEASURED, span).sigmas
    assert list(levels) == sorted(levels, reverse=True)
    assert levels[first : first + 3] == (0.6, 0.4, 0.2)


def test_the_levels_around_a_part_are_evenly_spaced():
    levels = (0.6, 0.4, 0.2)
    for first, after, before, behind in (
        (0, 0, (), ()),
        (1, 1, (1.0,), (0.1,)),
        (2, 3, (1.0, 0.8), (0.15, 0.1, 0.05)),
    ):
        span = ScheduleSpan(levels, levels, first, after)
        assert span.whole(levels) == pytest.approx((*before, *levels, *behind))
        assert (span.steps, span.partial) == (first + 3 + after, bool(first or after))
    span = ScheduleSpan(levels, levels, 2, 1)
    assert span.whole(levels, top=0.8) == pytest.approx((0.8, 0.7, 0.6, 0.4, 0.2, 0.1))
    assert span.whole(levels, top=0.5) == pytest.approx((0.6, 0.6, 0.6, 0.4, 0.2, 0.1)), "never below the run's own"
    assert span.whole((0.2, 0.6)) == pytest.approx((1.0, 0.6, 0.2, 0.6, 0.1)), "nor does it rise behind a run that does"
    assert ScheduleSpan((0.0,), (0.0,)).whole((1.0, 0.0)) == (1.0, 1e-6), "an evaluation at 0 is not the end of a list"
    assert ScheduleSpan((), (), after=1).partial


def test_how_near_levels_are_those_of_the_curve():
    near, far = [0.9 + 0.9e-5, 0.9 - 0.9e-5], [0.9 + 1.1e-5, 0.9 - 1.1e-5]
    for level in (*near, *far):
        found = place(MEASURED, whole((1.0, level, *LEVELS[2:]))).sigmas
        assert (found == LEVELS) is (level in near)
    assert place(MEASURED, whole(LEVELS[:-1])).sigmas == LEVELS[:-1]
    part = place(MEASURED, whole((0.4, 0.2), first=4))
    assert part.sigmas == pytest.approx((1.0, 0.85, 0.7, 0.55, 0.4, 0.2))
    unknown = place(resolve(None, speedup=1.5), whole((0.6, 0.4, 0.2), first=2))
    assert unknown.sigmas == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2)), "from 1 where no curve says"
    many = tuple(1 - i / 300 for i in range(300))
    long = resolve(Curve([1.0] * 300, sigmas=many), **RULE)
    assert place(long, whole([level + 3e-8 for level in many])).sigmas == many
    high = resolve(Curve(RATIOS, sigmas=[10 * level for level in LEVELS]), **RULE)
    assert place(high, whole((4.0, 2.0), first=2)).sigmas == pytest.approx((10.0, 7.0, 4.0, 2.0)), "from the curve's highest"


def test_a_level_at_the_switch_of_experts_is_the_first_ones():
    boundary = preset(TWO_EXPERTS).expert_boundary["boundary"]
    config = resolve(TWO_EXPERTS, speedup=1.5)
    assert switch(place(config, whole((0.99, boundary, boundary - 1e-3, 0.1))).config) == 2
    assert switch(place(config, ScheduleSpan((1.0, 0.5), ())).config) is None, "no level is known"
    assert switch(place(config, whole((0.8, 0.5, 0.1), first=2)).config) == 2, "all are the second one's"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8), st.integers(4, 12), st.integers(0, 8), st.sampled_from([1.5, 2.0, 3.0]), st.booleans())
def test_a_target_is_of_the_run_itself_wherever_it_lies_and_whatever_part_was_calibrated(
    first, count, after, speedup, all_of_it
):
    """One of two experts, or a stage, has the speedup asked for, though its calibration may know no other levels."""
    total = first + count + after
    levels = [1 - i / total for i in range(total)]
    shapes = np.stack([np.ones(total), levels, np.sin(5 * np.array(levels))], axis=1)
    rows = (shapes @ np.random.default_rng(0).normal(size=(3, 24))).reshape(total, 4, 6)
    known = slice(None) if all_of_it else slice(first, first + count)
    found = Calibration.from_residuals({"cond": rows[known]}, sigmas=levels[known])
    part = tuple(levels[first : first + count])
    placed = place(resolve(found, speedup=speedup), ScheduleSpan(part, part, first, after))
    schedule = placed.simulate()
    assert (schedule.first_step, schedule.steps) == (first, count)
    assert schedule.computed == int(count / speedup)
    session = placed.session()
    session.begin(placed.first)
    assert session.schedule == schedule


def switch(config):
    return config.target.expert_step if config.schedules else config.limits.expert_step


@pytest.mark.parametrize("settings", [{}, {"speedup": 1.5}], ids=["rule", "plan"])
def test_experts_switch_where_the_settings_say_else_the_host_else_the_preset(settings):
    flow = (0.99, 0.95, 0.9, 0.8, 0.5, 0.1)
    boundary = preset(TWO_EXPERTS).expert_boundary["boundary"]
    counted = sum(level >= boundary for level in flow)
    assert 0 < counted < 6
    for first in (0, 2):
        assert switch(place(resolve(TWO_EXPERTS, **settings), whole(flow, first=first)).config) == first + counted
        assert switch(place(resolve(TWO_EXPERTS, **settings), whole(flow, first=first, expert_step=4)).config) == first + 4
        given_by_user = resolve(TWO_EXPERTS, **settings, expert_step=1)
        assert switch(place(given_by_user, whole(flow, first=first, expert_step=4)).config) == 1
    assert switch(place(resolve("flux.1-dev", **settings), whole(flow)).config) is None


def test_a_preset_finds_its_switch_by_level_or_by_number():
    found = preset(TWO_EXPERTS)
    boundary = found.expert_boundary["boundary"]
    assert found.expert_step(4, [1.0, boundary, boundary - 0.01, 0.1]) == 2
    assert 0 < found.expert_step(20) < 20
    assert preset("flux.1-dev").expert_step(4, [1.0, 0.9, 0.5, 0.1]) is None


def test_a_guidance_scale_matters_to_plans_of_two_branches_that_do_not_say():
    two, one = {"cond": RATIOS, "uncond": RATIOS}, RATIOS
    assert resolve(two, speedup=1.5).with_guidance(5.0).target.guidance == 5.0
    assert resolve(two, speedup=1.5, guidance=3.0).with_guidance(5.0).target.guidance == 3.0
    assert resolve(one, speedup=1.5).with_guidance(5.0).target.guidance is None
    assert resolve({**two, "reference": RATIOS}, speedup=1.5).with_guidance(5.0).target.guidance is None
    plain = resolve(two, speedup=1.5)
    assert plain.with_guidance(None) is plain
    assert resolve(two, **RULE).with_guidance(5.0) == resolve(two, **RULE)


def test_further_streams_have_the_ratios_of_those_they_go_by():
    config = resolve({"cond": RATIOS, "uncond": RATIOS[::-1]}, **RULE)
    more = config.with_streams({"uncond 2": "uncond", "cond": "cond", "other": "unknown"})
    assert more.streams == ("cond", "uncond", "uncond 2")
    assert more.curve.of("uncond 2") == RATIOS[::-1]
    assert config.with_streams({"cond": "cond"}) is config


def test_a_plan_for_like_runs_is_made_once(monkeypatch):
    from magpolicy.planning import _planner

    made = []
    solve = _planner.solve
    monkeypatch.setattr(_planner, "solve", lambda *args: made.append(args) or solve(*args))
    config = resolve(Curve(RATIOS, sigmas=LEVELS), speedup=1.5)
    schedules = [place(config.with_guidance(None), whole()).session().schedule for _ in range(3)]
    assert len(made) == 1
    assert schedules[0] is schedules[1] is schedules[2]
    assert schedules[0] == plan(Curve(RATIOS, sigmas=LEVELS), speedup=1.5)
    place(config, whole((0.9, 0.5, 0.1))).session()
    assert len(made) == 2
