"""A target holds for runs of any length, and for models of which nothing is known."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, Curve, PlanWarning, Session, plan, preset
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
        session = Session.from_config(config.for_any_run(), steps)
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
    if exact is None or few:
        (name,) = target
        assert len(said) == 1
        assert said[0].startswith(f"{name}=")
        assert f"{schedule.computed} of them compute" in said[0]
    else:
        assert (schedule, said) == (exact, [])
    if "speedup" in target:
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
            Session.from_config(config, steps)
    assert [str(w.message) for w in caught] == [
        "speedup=3 cannot be had in a run of 4 steps: 2 of them compute",
        "speedup=3 cannot be had in a run of 1 steps: 1 of them compute",
    ]


def test_a_session_of_ones_own_is_told_what_cannot_be_had():
    with pytest.raises(ArgumentError, match="speedup=3 leaves 0 of 1 evaluations"):
        Session(None, steps=1, speedup=3.0)


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
