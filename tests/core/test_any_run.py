"""A target holds for runs of any length, and for models of which nothing is known."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, Curve, PlanWarning, Schedule, Session, plan, preset
from magpolicy.adapter import ScheduleSpan, place, resolve
from magpolicy.calibration._prior import prior_calibration

TARGETS = st.one_of(
    st.builds(dict, speedup=st.floats(1, 40)),
    st.builds(dict, computed=st.integers(1, 60)),
    st.builds(dict, error=st.floats(0, 0.5)),
)
LIMITS = st.fixed_dictionaries(
    {}, optional={"max_skips": st.integers(0, 6), "retention": st.floats(0, 1), "forced": st.just([-1])}
)


def run_of(config, steps):
    """A run by the nearest plan, and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = Session.from_config(config.for_any_run(), steps).begin()
    return session.schedule, [str(w.message) for w in caught if w.category is PlanWarning]


@settings(deadline=None)
@given(TARGETS, LIMITS, st.integers(1, 40), st.sampled_from([None, "flux.1-dev", "wan2.2-t2v-a14b"]))
def test_a_run_of_any_length_is_planned(target, limits, steps, source):
    """If the target can be had, it is planned as ever, without a word; else the nearest that can, and a warning says so."""
    config = resolve(source, **target, **limits)
    schedule, said = run_of(config, steps)
    assert schedule.steps == steps
    try:
        exact = plan(source, steps=steps, **target, **limits)
    except ArgumentError:
        exact = None
    few = "speedup" in target and steps > 1 and int(steps / target["speedup"] + 1e-9) < 2
    if exact is not None and "error" in target and exact.computed < 2 <= steps:  # one step's residual makes no picture
        assert (schedule.computed, len(said)) == (2, 1)
    elif exact is None or few:
        (name,) = target
        assert len(said) == 1
        assert said[0].startswith(f"{name}=")
        assert (f"{schedule.computed} of them compute" if schedule.computed < steps else "every step computes") in said[0]
    else:
        assert (schedule, said) == (exact, [])
    if "computed" not in target:
        assert schedule.computed >= min(2, steps)


@given(st.integers(1, 40), st.integers(0, 4), st.floats(0, 0.5))
def test_what_cannot_be_had_is_missed_by_as_little_as_can_be(steps, max_skips, retention):
    """No plan with fewer computed steps keeps the limits."""
    config = resolve(None, speedup=40.0, max_skips=max_skips, retention=retention)
    computed = run_of(config, steps)[0].computed
    if computed > 2:
        with pytest.raises(ArgumentError, match=f"at least {computed} must"):
            plan(None, steps=steps, computed=computed - 1, max_skips=max_skips, retention=retention)


@pytest.mark.parametrize(("steps", "speedup", "computed"), [(4, 2.5, 2), (4, 3.0, 2), (2, 2.0, 2), (1, 2.0, 1), (12, 3.0, 4)])
def test_short_runs(steps, speedup, computed):
    assert run_of(resolve(None, speedup=speedup), steps)[0].computed == computed


def test_the_warning_comes_once_for_each_length():
    config = resolve(None, speedup=3.0).for_any_run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for steps in (4, 28, 4, 30, 1, 4):
            Session.from_config(config, steps).begin()
    assert [str(w.message) for w in caught] == [
        "speedup=3 cannot be had in a run of 4 steps: 2 of them compute",
        "speedup=3 cannot be had in a run of one step: every step computes",
    ]


def test_a_session_of_ones_own_is_told_what_cannot_be_had():
    with pytest.raises(ArgumentError, match="speedup=3 leaves 0 of 1 evaluations"):
        Session(None, steps=1, speedup=3.0)


# What only longer runs have is left out of a shorter one, and a schedule is stretched: nothing is an error inside of a call.

SETTINGS = st.one_of(
    st.builds(dict, speedup=st.floats(1, 10), forced=st.lists(st.integers(-30, 30), max_size=4)),
    st.builds(dict, speedup=st.just(2.0), forecast=st.sampled_from(["hold", "linear", "calibrated", "second-order"])),
    st.fixed_dictionaries(
        {"threshold": st.floats(0, 1), "max_skips": st.integers(0, 5), "retention": st.floats(0, 1)},
        optional={
            "start_step": st.integers(0, 40),
            "end_step": st.integers(0, 40),
            "forced": st.lists(st.integers(-30, 30), max_size=4),
            "forecast": st.sampled_from(["hold", "linear"]),
            "semantics": st.sampled_from(["default", "official/flux", "diffusers", "comfyui/wan"]),
            "expert_step": st.integers(0, 40),
        },
    ),
)


@settings(deadline=None)
@given(SETTINGS, st.sampled_from(["flux.1-dev", "wan2.2-t2v-a14b"]), st.integers(1, 40), st.data())
def test_no_length_is_an_error(asked, source, steps, data):
    """Of a whole run, and of its last steps (image to image of any strength)."""
    try:
        config = resolve(source, **asked).for_any_run(warns=False)
    except ArgumentError:  # that is said before any run
        return
    first = data.draw(st.integers(0, steps - 1))
    session = Session.from_config(config, steps)
    session.begin(first)
    for _ in range(first, steps):
        session.decide(source)
        session.commit()
    assert len(session.trace) == steps - first
    if "speedup" in asked:
        assert sum(entry.decision.computes for entry in session.trace) >= min(2, steps - first)
    outside = [step for step in asked.get("forced", ()) if not -steps <= step < steps]
    assert ("forced holds" in session.differs) == bool(outside)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 3))
def test_a_schedule_of_another_length_is_stretched(rest, steps, first):
    """The same share of it computes, two steps at least, and the first one always; of its own length it is itself."""
    given = Schedule.from_mask([True, *rest], first_step=first)
    config, length = resolve(given).for_any_run(), first + 1 + len(rest)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = Session.from_config(config, steps).begin()
        Session.from_config(config, steps).begin()
    assert len(caught) == (steps != length)
    if steps == length:
        assert session.schedule is given
        return
    assert session.differs == str(caught[0].message)
    assert f"the schedule given has {length} steps, this run {steps}" in session.differs
    computed = session.schedule.mask
    assert computed[0]
    wanted = round((first + given.computed) * steps / length)
    assert (len(computed), sum(computed)) == (steps, min(max(wanted, 2), steps))


def test_a_stretched_schedule_keeps_its_shape():
    def strip(mask, steps):
        return Session.from_config(resolve(Schedule.from_mask(mask)).for_any_run(warns=False), steps).schedule.strip

    assert strip([1, 0] * 10, 10) == "█·" * 5
    assert strip([1, 0] * 10, 30) == "█·" * 15
    assert strip([1] * 6 + [0] * 14, 40) == "█" * 12 + "·" * 28


def test_a_session_of_ones_own_takes_a_schedule_of_its_length_alone():
    with pytest.raises(ArgumentError, match="steps=4 contradicts the schedule's 2"):
        Session(Schedule.from_mask([1, 0]), steps=4)


def test_a_number_of_steps_is_missed_from_below():
    assert run_of(resolve(None, computed=8), 2)[0].computed == 2
    assert run_of(resolve(None, computed=8), 2)[1] == ["computed=8 cannot be had in a run of 2 steps: every step computes"]


def test_limits_of_long_plans_are_left_out():
    for name, value in {"objective": "trajectory", "forecast": "second-order"}.items():
        schedule, said = run_of(resolve(None, speedup=2.0, **{name: value}), 201)
        assert schedule.computed == 100
        assert said == [f"{name}={value!r} plans at most 200 steps, this run has 201: it is left out"]


# Of a model that is not known, norms are taken for constant.


def test_a_plan_of_an_unknown_model_is_that_of_the_prior():
    levels = tuple(1 - i / 28 for i in range(28))
    assert plan(None, steps=28, speedup=2.0).masks == plan(prior_calibration(None, levels=levels), speedup=2.0).masks
    ones = plan(Curve([1.0] * 28), speedup=2.0)
    assert plan(None, steps=28, speedup=2.0) == ones
    assert plan(None, sigmas=levels, speedup=2.0).sigmas == levels


def test_an_unknown_model_says_how_long_its_run_is():
    with pytest.raises(ArgumentError, match=r"steps=None must be a whole number from 1 .*; try 28"):
        plan(None, speedup=2.0)
    with pytest.raises(ArgumentError, match="source=None: the rule needs magnitude ratios"):
        Session(None, steps=4, threshold=0.1, max_skips=2, retention=0.2)


def test_it_says_what_decided_and_what_would_better_it():
    session = Session(None, steps=28, speedup=2.0)
    assert session.source == "a plan from the general prior, norms taken for constant"
    assert "calibrate=True" in session.advice
    assert Session("flux", steps=28, speedup=2.0).source == "a plan from the general prior, norms of preset 'flux.1-dev'"
    assert "speedup='balanced'" in Session("flux", steps=28).advice
    assert Session(prior_calibration(None, levels=[1.0, 0.5]), speedup=1.0).advice == ""


# The prior is told the noise levels of the run, also where a table has none.


def shifted(count, shift):
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (1 - i / count for i in range(count)))


@pytest.mark.parametrize("source", [None, "flux.1-dev"])
def test_a_run_of_a_host_is_planned_at_its_noise_levels(source):
    levels = shifted(28, 3.0)
    span = ScheduleSpan(tuple(1 - i / 28 for i in range(28)), levels)
    session = place(resolve(source, speedup=2.0), span).session()
    assert session.sigmas == levels
    assert session.schedule == plan(source, sigmas=levels, speedup=2.0)
    assert session.schedule.masks != plan(source, steps=28, speedup=2.0).masks


def test_norms_of_a_table_without_levels_are_read_by_share_of_the_run():
    curve = preset("flux.1-dev").curve
    assert curve.assumed
    even = prior_calibration(curve, levels=[1 - i / 28 for i in range(28)])
    there = prior_calibration(curve, levels=shifted(28, 3.0))
    (name,) = curve.streams
    assert there.streams[name].gram[:, 0] == pytest.approx(even.streams[name].gram[:, 0])
    twice = prior_calibration(curve, levels=[s for s in shifted(28, 3.0) for _ in range(2)])
    assert twice.streams[name].gram[::2, 0] == pytest.approx(even.streams[name].gram[:, 0])


def test_what_asks_for_the_rule():
    from magpolicy.run._resolve import asks_for_the_rule

    assert all(map(asks_for_the_rule, [{"threshold": 0.0}, {"max_skips": 0}, {"retention": 0.0}, {"start_step": 1}]))
    assert not asks_for_the_rule({"start_step": 0, "forecast": "linear", "forced": [1]})
    assert not asks_for_the_rule({"threshold": None, "max_skips": 3, "speedup": 2.0})
    assert magpolicy.PlanWarning.__module__ == "magpolicy"


def test_what_shows_only_in_a_run_makes_that_run_compute():
    """A guidance scale combines two branches, and how many there are is known once streams are."""
    config = resolve({name: [1.0] * 6 for name in "abc"}, speedup=2.0, guidance=3.0)
    with pytest.raises(ArgumentError, match="combines two streams, there are 3"):
        config.prepare(6, None)
    session = Session.from_config(config.for_any_run(warns=False), 6)
    assert session.schedule is None
    assert session.differs.endswith("there are 3; try guidance={'a': ...}: every step of this run computes")
    with session:
        for _ in range(6):
            assert session.decide("a").computes
            session.commit()
