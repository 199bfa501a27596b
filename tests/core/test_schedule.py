"""Schedules: how they print, compare, are written down and read back."""

import json

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpolicy import ArgumentError, Decision, PresetError, RunError, Schedule, Session, simulate

FLUX_LIKE = [1.0, 1.21, 1.12, 1.08, 1.06, 1.04, 1.03, 1.04, 1.02, 1.03, 1.02, 0.98, 1.02, 1.01]

masks = st.lists(st.booleans(), min_size=1, max_size=40).map(lambda row: [True, *row[1:]])


def a_schedule(**more):
    return simulate(FLUX_LIKE, threshold=0.24, max_skips=3, retention=0.1, **more)


def test_one_readable_line():
    mask = [c == "█" for c in "███·█··█···█···█·····█·····█"]
    assert str(Schedule.from_mask(mask)) == "28 steps ███·█··█···█···█·····█·····█  9 computed  3.11x"


def test_the_line_of_one_step():
    assert str(simulate([1.0], threshold=1, max_skips=5, retention=0)) == "1 steps █  1 computed  1.00x"


def test_figures_of_one_stream():
    schedule = Schedule.from_mask([1, 0, 0, 1, 0])
    assert (schedule.steps, schedule.computed, schedule.skipped) == (5, 2, 3)
    assert schedule.mask == (True, False, False, True, False)
    assert schedule.speedup == 2.5
    assert schedule.strip == "█··█·"
    assert schedule.reasons() == {"scheduled": 2, "reused": 3}


def test_figures_of_two_streams():
    schedule = Schedule.from_mask({"cond": [1, 0, 1, 0], "uncond": [1, 1, 0, 0]})
    assert schedule.mask == (True, True, True, False)  # a step computes if any stream does
    assert (schedule.computed, schedule.skipped) == (3, 1)
    assert schedule.speedup == 2.0  # eight evaluations, four of them computed
    assert schedule.stream_mask("uncond") == (True, True, False, False)
    assert schedule.reasons("cond") == {"scheduled": 2, "reused": 2}
    with pytest.raises(ArgumentError, match=r"stream='ref' .* 'cond', 'uncond'"):
        schedule.stream_mask("ref")
    with pytest.raises(ArgumentError, match="stream='ref'"):
        schedule.stream_errors("ref")
    with pytest.raises(ArgumentError, match="stream='ref'"):
        schedule.reasons("ref")


def test_errors_are_those_of_the_worse_stream_and_add_up_by_run_of_skips():
    schedule = simulate(
        {"cond": [1.0, 1.0, 1.1, 1.0, 1.2], "uncond": [1.0, 1.05, 1.0, 1.0, 1.0]}, threshold=0.35, max_skips=2, retention=0
    )
    assert schedule.stream_mask("cond") == (True, False, False, True, False)
    assert schedule.stream_errors("cond") == pytest.approx((0, 0, 0.1, 0, 0.2))
    assert schedule.stream_errors("uncond") == pytest.approx((0, 0.05, 0.1, 0, 0))
    assert schedule.errors == pytest.approx((0, 0.05, 0.1, 0, 0.2))
    assert schedule.error == pytest.approx(((0.1 + 0.2) + 0.1) / 2)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.lists(st.floats(0.7, 1.4), min_size=9, max_size=9), min_size=1, max_size=3))
def test_to_dict_and_back(ratios):
    schedule = simulate(ratios, threshold=0.2, max_skips=3, retention=0.1, forced=[-1], part=(2, 9))
    data = schedule.to_dict()
    again = Schedule.from_dict(json.loads(json.dumps(data)))
    assert again == schedule
    assert (again.decisions, again.modelled, again.first_step) == (schedule.decisions, schedule.modelled, 2)
    assert again.to_dict() == data
    assert (data["steps"], data["computed"], data["first_step"]) == (7, schedule.computed, 2)
    assert data["mask"] == [int(m) for m in schedule.mask]


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        [],
        {},
        {"streams": {}},
        {"streams": {}, "first_step": 0},
        {"streams": [], "first_step": 0},
        {"streams": {"a": {"reasons": ["reused"], "errors": []}}, "first_step": 0},
        {"streams": {"a": {"reasons": ["no such reason"], "errors": [0]}}, "first_step": 0},
        {"streams": {"a": {"reasons": ["forced"], "errors": ["x"]}}, "first_step": 0},
        {"streams": {"a": {"reasons": [], "errors": []}}, "first_step": 0},
        {"streams": {"a": {"reasons": ["forced"], "errors": [0]}}},
        {"streams": {"a": {"reasons": ["forced"], "errors": [0]}}, "first_step": -3},
        {
            "streams": {
                "a": {"reasons": ["forced"], "errors": [0]},
                "b": {"reasons": ["forced", "reused"], "errors": [0, 0]},
            },
            "first_step": 0,
        },
    ],
)
def test_what_is_not_a_schedules_dict(data):
    with pytest.raises(ArgumentError, match="data="):
        Schedule.from_dict(data)


@settings(deadline=None)
@given(masks, masks)
def test_equal_when_the_same_steps_compute(a, b):
    one, other = Schedule.from_mask(a), Schedule.from_mask(b)
    assert (one == other) == (a == b)
    assert one == Schedule.from_mask(np.array(a))
    assert one == Schedule.from_mask([int(value) for value in a])
    assert hash(one) == hash(Schedule.from_mask(a))
    assert one.mask == tuple(a)
    assert one != a


def test_the_reasons_and_the_name_of_the_semantics_do_not_matter_for_equality_the_streams_do():
    schedule = a_schedule()
    assert Schedule.from_mask(schedule.mask) == schedule
    assert Schedule.from_mask({"cond": schedule.mask}) == schedule, "an only stream may be called anything"
    other = tuple(not m or not i for i, m in enumerate(schedule.mask))
    two = Schedule.from_mask({"cond": schedule.mask, "uncond": other})
    assert two == Schedule.from_mask({"uncond": other, "cond": schedule.mask})
    assert two != Schedule.from_mask({"cond": other, "uncond": schedule.mask})
    assert len({two, schedule, Schedule.from_mask({"uncond": other, "cond": schedule.mask})}) == 2


@pytest.mark.parametrize(
    "mask", [[], [0, 1], [1, 2], [1, None], ["1", "0"], "10", None, 5, {}, {"cond": []}, {"a": [1], "b": [1, 0]}, [[1, 0]],
             np.ones((2, 2)), [1, float("nan")], {"cond": 5}]
)  # fmt: skip
def test_what_is_not_a_mask(mask):
    with pytest.raises(ArgumentError, match=r"mask|rows"):
        Schedule.from_mask(mask)


def test_a_mask_of_your_own_is_followed():
    mine = Schedule.from_mask({"cond": [1, 0, 1, 0], "uncond": [1, 1, 1, 0]})
    assert simulate(mine) == mine
    with Session(mine) as session:
        for _ in range(4):
            for stream in mine.streams:
                session.decide(stream)
                session.commit()
        with pytest.raises(RunError, match="4 steps are all decided"):
            session.decide("cond")
    assert Schedule.from_trace(session.trace) == mine


def test_a_mask_followed_from_the_middle_computes_first():
    session = Session(Schedule.from_mask([1, 1, 0, 0, 1])).begin(2)
    answers = []
    for _ in range(3):
        answers.append(session.decide())
        session.commit()
    assert answers == [Decision.NO_RESIDUAL, Decision.REUSED, Decision.SCHEDULED]


@pytest.mark.parametrize(
    "more", [{"threshold": 0.1}, {"max_skips": 2}, {"retention": 0.2}, {"steps": 3}, {"sigmas": [1.0, 0.5, 0.2, 0.1, 0.05]}]
)
def test_a_mask_is_not_mixed_with_settings(more):
    with pytest.raises(ArgumentError, match="contradicts"):
        Session(Schedule.from_mask([1, 0, 1, 0]), **more)


def test_from_a_trace_of_streams_that_sit_steps_out():
    with Session([1.0, 1.0, 1.0, 1.0], threshold=1, max_skips=5, retention=0) as session:
        for step, stream in [(0, "a"), (1, "a"), (1, "b"), (3, "b"), (3, "a")]:
            session.decide(stream, step=step)
            session.commit()
    schedule = Schedule.from_trace(session.trace)
    assert schedule.streams == ("a", "b")
    assert [d.reason for d in schedule.decisions[0]] == ["no_residual", "reused", "absent", "reused"]
    assert [d.reason for d in schedule.decisions[1]] == ["absent", "no_residual", "absent", "reused"]
    assert schedule.mask == (True, True, False, False)
    assert schedule.speedup == 5 / 2  # an absent stream is no evaluation


def test_from_a_trace_of_a_later_part_of_a_run():
    session = Session(FLUX_LIKE, threshold=0.24, max_skips=3, retention=0.1).begin(5)
    for _ in range(4):
        session.decide()
        session.commit()
    session.end()
    schedule = Schedule.from_trace(session.trace)
    assert (schedule.first_step, schedule.steps) == (5, 4)
    assert schedule == a_schedule(part=(5, 9))


def a_plan():
    """Four of eight steps, every skip with a forecast, an error and, at computed steps, a check of its own."""
    return Schedule.from_mask(
        [1, 1, 0, 0, 1, 0, 1, 0],
        coefficients=[0, 0, (0.5, 0.1), (0.6,), 0, (0.7,), 0, (0.8, 0.2)],
        errors=[0, 0, 0.01, 0.02, 0, 0.03, 0, 0.04],
        checks={"single": [None, ((), 0.1), None, None, ((0.2,), 0.2), None, ((0.3,), 0.3), None]},
        sigmas=[1 - i / 8 for i in range(8)],
    )


def followed(plan, *, start=0, revised=(), **settings):
    """The trace of a run that computes the steps ``revised`` though the plan skips them."""
    session = Session(plan, **settings).begin(start)
    for step in range(start, session.steps):
        session.decide()
        session.commit(Decision.MISMATCH if step in revised else None)
    session.end()
    return session.trace


def test_a_trace_with_its_plan_states_the_plan():
    plan = a_plan()
    ran = Schedule.from_trace(followed(plan), plan=plan)
    assert (ran, ran.coefficients, ran.modelled) == (plan, plan.coefficients, plan.modelled)
    assert (ran.checks, ran.sigmas, ran.planned) == (plan.checks, plan.sigmas, True)
    assert ran.rms_error == plan.rms_error
    alone = Schedule.from_trace(followed(plan))
    assert (alone.coefficients, alone.worst, alone.planned) == (plan.coefficients, 0, False)


def test_what_did_not_go_as_planned_is_not_stated():
    plan = a_plan()
    ran = Schedule.from_trace(followed(plan, revised=[3]), plan=plan)
    assert ran.mask == (True, True, False, True, True, False, True, False)
    # Forecasts and checks from step 4 on are made of the residuals of steps 1 and 4; here 3 and 4 were computed last.
    assert ran.coefficients == (((), (), (0.5, 0.1), (), (), (), (), ()),)
    assert ran.modelled == ((0, 0, 0.01, 0, 0, 0, 0, 0),)
    assert ran.checks == ((None, ((), 0.1), None, None, None, None, None, None),)


def test_a_stream_that_sat_a_step_out_has_no_error_there():
    entry = followed(Schedule.from_mask([1, 0, 1]))
    both = [*entry, attrs.evolve(entry[0], stream="other"), attrs.evolve(entry[2], stream="other")]
    ran = Schedule.from_trace(both)
    assert ran.decisions[1] == (Decision.SCHEDULED, Decision.ABSENT, Decision.SCHEDULED)
    assert ran.modelled == ((0, 0, 0), (0, 0, 0))


def test_a_plan_of_other_forecasts_says_nothing_of_what_this_run_skipped():
    plan = a_plan()
    holds = Schedule.from_mask(plan.mask, errors=plan.modelled[0])
    assert Schedule.from_trace(followed(plan), plan=holds).worst == 0
    assert Schedule.from_trace(followed(holds), plan=plan).worst == 0
    assert Schedule.from_trace(followed(holds), plan=holds).modelled == plan.modelled


def test_a_stream_that_the_plan_does_not_know_has_what_its_first_expects():
    masks = {"cond": [1, 0, 1, 0], "uncond": [1, 0, 1, 0]}
    plan = Schedule.from_mask(masks, errors={"cond": [0, 0.1, 0, 0.2], "uncond": [0, 0.3, 0, 0.4]})
    ran = Schedule.from_trace(followed(Schedule.from_mask(masks["cond"])), plan=plan)
    assert ran.streams == ("single",)
    assert ran.modelled == ((0, 0.1, 0, 0.2),)


def test_a_run_from_the_middle_states_what_is_as_planned_from_there_on():
    plan = a_plan()
    ran = Schedule.from_trace(followed(plan, start=3), plan=plan)
    assert (ran.first_step, ran.steps) == (3, 5)
    assert ran.sigmas == plan.sigmas[3:]
    assert ran.modelled[0][2] == 0, "its forecast is made of two residuals, there is one"


@pytest.mark.parametrize("start", range(8))
def test_a_run_from_any_step_that_holds_states_what_a_plan_that_holds_does(start):
    plan = Schedule.from_mask(
        [1, 1, 0, 1, 0, 1, 1, 0], errors=[0, 0, 0.1, 0, 0.2, 0, 0, 0.3], sigmas=[1 - i / 8 for i in range(8)]
    )
    ran = Schedule.from_trace(followed(plan, start=start), plan=plan)
    assert ran.sigmas == plan.sigmas[start:]
    assert ran.mask[0], "nothing is computed before"
    assert (ran.modelled[0][-1] == 0.3) == (start < 7)


def test_a_forecast_asks_only_that_the_steps_it_is_made_of_are_the_planned_ones():
    plan = Schedule.from_mask([1, 1, 0, 1, 1, 0], coefficients=[0, 0, 0, 0, 0, (0.7,)], errors=[0, 0, 0.1, 0, 0, 0.2])
    ran = Schedule.from_trace(followed(plan, revised=[2]), plan=plan)
    assert ran.mask == (True, True, True, True, True, False)
    assert ran.modelled == ((0, 0, 0, 0, 0, 0.2),)


def test_levels_of_a_plan_are_those_of_a_run_that_lies_within_it():
    plan = a_plan()
    trace = [attrs.evolve(entry, sigma=None) for entry in followed(plan)]
    for first in range(8):
        assert Schedule.from_trace(trace[first : first + 1], plan=plan).sigmas == plan.sigmas[first : first + 1]
    longer = [*trace, attrs.evolve(trace[0], step=8)]
    assert Schedule.from_trace(longer, plan=plan).sigmas is None


def test_a_run_that_holds_states_no_errors_of_forecasts():
    plan = a_plan()
    ran = Schedule.from_trace(followed(plan, forecast="hold"), plan=plan)
    assert not any(map(any, ran.coefficients))
    assert ran.worst == 0


def test_noise_levels_are_those_of_the_run_where_no_plan_has_any():
    with Session([1.0, 1.1, 1.0], sigmas=[1.0, 0.5, 0.2], threshold=0.2, max_skips=2, retention=0) as session:
        for _ in range(3):
            session.decide()
            session.commit()
    ran = Schedule.from_trace(session.trace)
    assert ran.sigmas == (1.0, 0.5, 0.2)
    assert Schedule.from_trace(session.trace[:2]).sigmas == (1.0, 0.5)
    later = Session([1.0, 1.1, 1.0], sigmas=[1.0, 0.5, 0.2], threshold=0.2, max_skips=2, retention=0).begin(1)
    for _ in range(2):
        later.decide()
        later.commit()
    later.end()
    assert Schedule.from_trace(later.trace).sigmas == (0.5, 0.2)
    assert Schedule.from_trace(session.trace, plan=Schedule.from_mask([1, 0, 0])).sigmas == (1.0, 0.5, 0.2)
    assert Schedule.from_dict(ran.to_dict()).sigmas == ran.sigmas
    assert simulate([1.0, 1.1, 1.0], sigmas=[1.0, 0.5, 0.2], part=(1, 3), threshold=0.2, max_skips=2, retention=0).sigmas == (
        0.5,
        0.2,
    )
    assert "sigmas" not in Schedule.from_mask([1, 0]).to_dict()


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.5, 0.1], [1.0, -0.5], [1.0, "x"], 3])
def test_noise_levels_that_cannot_be(sigmas):
    with pytest.raises(ArgumentError, match="sigmas"):
        Schedule.from_mask([1, 0], sigmas=sigmas)


def test_the_zero_at_the_end_of_a_schedulers_list_is_no_step():
    assert Schedule.from_mask([1, 0], sigmas=[1.0, 0.5, 0.0]).sigmas == (1.0, 0.5)
    assert Schedule.from_mask([1, 0], sigmas=[1.0, 0.0]).sigmas == (1.0, 0.0)
    with pytest.raises(ArgumentError, match="sigmas has 3 values for 2 steps"):
        Schedule.from_mask([1, 0], sigmas=[1.0, 0.5, -0.1])


def test_one_coefficient_may_be_an_array_without_dimensions_and_no_text():
    assert Schedule.from_mask([1, 0], coefficients=[0, np.array(0.5)]).coefficients == (((), (0.5,)),)
    with pytest.raises(ArgumentError, match=r"coefficients\['single'\]\[1\]='0\.5' must be a"):
        Schedule.from_mask([1, 0], coefficients=[0, "0.5"])


@pytest.mark.parametrize("values", [[0], [0, 0.5, 0.5]], ids=["too few", "too many"])
def test_coefficients_are_one_a_step(values):
    with pytest.raises(ArgumentError, match=rf"coefficients\['single'\] has {len(values)} values for 2 steps; give one a step"):
        Schedule.from_mask([1, 0], coefficients=values)


@pytest.mark.parametrize("name", ["plan.csv", "plan.toml", "plan"])
def test_a_schedule_is_saved_as_json_alone(tmp_path, name):
    with pytest.raises(PresetError, match=rf"path=.*{name}' must end in \.json; try plan\.json"):
        a_plan().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_empty_trace_is_no_schedule():
    with pytest.raises(ArgumentError, match="trace is empty"):
        Schedule.from_trace(())


@pytest.mark.parametrize("steps", [300, 1000])
def test_forecasts_of_many_steps(steps):
    mask = [True, *[False] * (steps - 1)]
    plan = Schedule.from_mask(mask, coefficients=[0, *[(0.5,)] * (steps - 1)])
    assert plan.coefficients == (((), *[(0.5,)] * (steps - 1)),)


@pytest.mark.parametrize("extra", [{"start_step": 1}, {"end_step": -1}, {"forced": [2]}, {"semantics": "diffusers"}])
def test_a_schedule_is_not_followed_and_changed_at_once(extra):
    with pytest.raises(ArgumentError, match=next(iter(extra))):
        Session(Schedule.from_mask([1, 0, 1]), **extra)


def test_a_step_a_stream_sat_out_does_not_split_its_run_of_skips():
    row = [(Decision.SCHEDULED, 0.0), (Decision.REUSED, 0.1), (Decision.ABSENT, 0.0), (Decision.REUSED, 0.3)]
    assert Schedule.from_decisions({"cond": row}).error == 0.3
