"""Runs that forecast: what a session tells the host is what was planned, and enough to carry it out."""

import json
import math

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, Calibration, Decision, RunError, Safeguard, Schedule, Session, plan, simulate
from magpolicy.testing import strategies

LAWS = settings(max_examples=60, deadline=None)
FORECASTS = ("hold", "linear", "calibrated", "second-order")
RULE = {"threshold": 0.3, "max_skips": 3, "retention": 0.1}


class Host:
    """Carries a session out on recorded residuals, and keeps only what the session says it will need."""

    def __init__(self, residuals):
        self.residuals = residuals
        self.kept = {name: [] for name in residuals}
        self.used = {name: {} for name in residuals}
        self.held = 0

    def run(self, session, joint=True, start=0, off=1.0):
        count = len(next(iter(self.residuals.values())))
        session.begin(start)
        for i in range(start, count):
            for names in [list(self.residuals)] if joint else [[n] for n in self.residuals]:
                call = session.call(names)
                if call.skip:
                    for stream in call.streams:
                        self.reuse(stream, i)
                    call.commit()
                else:
                    self.compute(call, i, off)
        session.end()
        return magpolicy.Schedule.from_trace(session.trace)

    def reuse(self, stream, i):
        true = self.residuals[stream.name][i]
        used = guess(self.kept[stream.name], stream.coefficients)
        self.used[stream.name][i] = np.linalg.norm(true - used) / np.linalg.norm(true)

    def compute(self, call, i, off):
        errors = {}
        for stream in call.streams:
            kept, true = self.kept[stream.name], self.residuals[stream.name][i]
            if stream.check is not None:
                error = np.linalg.norm(true - guess(kept, stream.check[0])) / np.linalg.norm(true)
                errors[stream.name] = off * error
        call.commit(errors=errors)
        for stream in call.streams:
            kept = [*self.kept[stream.name], self.residuals[stream.name][i]]
            self.kept[stream.name] = kept[len(kept) - stream.keep :] if stream.keep < len(kept) else kept
            self.held = max(self.held, len(self.kept[stream.name]))


def guess(kept, coefficients):
    """The forecast, written down from the formula; what is missing raises."""
    return kept[-1] + sum(c * (kept[-1 - o] - kept[-2 - o]) for o, c in enumerate(coefficients))


def residuals(steps=20, streams=("cond", "uncond"), seed=3, noise=0.0):
    sigmas = np.linspace(1, 1 / steps, steps)
    random = np.random.default_rng(seed)
    shapes = np.stack([np.ones(steps), sigmas, np.sin(5 * sigmas), np.exp(-9 * sigmas)], axis=1)
    return {
        n: (shapes @ random.normal(size=(4, 32)) + noise * random.normal(size=(steps, 32))).reshape(steps, 4, 8)
        for n in streams
    }


def calibrated(rows):
    count = len(next(iter(rows.values())))
    return Calibration.from_residuals(rows, sigmas=np.linspace(1, 1 / count, count).tolist())


@LAWS
@given(st.integers(2, 24), st.floats(0, 1), st.sampled_from(FORECASTS), st.sampled_from([0.0, 0.3]))
def test_what_a_run_reuses_is_off_by_what_the_plan_expects(steps, share, forecast, noise):
    rows = residuals(steps, noise=noise)
    computed = 1 + round(share * (steps - 1))
    chosen = plan(calibrated(rows), computed=computed, forecast=forecast)
    host = Host(rows)
    assert host.run(Session(chosen)) == chosen
    for name in rows:
        for i, error in host.used[name].items():
            assert error == pytest.approx(chosen.stream_errors(name)[i], rel=1e-3, abs=1e-6)
    most = {"hold": 1, "linear": 2, "calibrated": 2, "second-order": 3}[forecast]
    assert host.held <= most


@LAWS
@given(strategies.calibrations(min_size=2, max_size=14), st.data())
def test_no_residual_is_kept_that_is_not_used(found, data):
    """Keeping one less than ``keep`` says would lose a residual that a later skip needs."""
    chosen = plan(found, computed=data.draw(st.integers(-(-found.steps // (found.window + 1)), found.steps)))
    with Session(chosen) as session:
        keep = {}
        for i in range(found.steps):
            call = session.call(chosen.streams[:1])
            keep[i] = call.streams[0].keep if chosen.mask[i] else None
            call.commit()
    c = chosen.coefficients[0]
    computed = [i for i, m in enumerate(chosen.mask) if m]
    for j in computed:
        oldest = [[x for x in computed if x < i][-1 - len(c[i])] for i in range(j, found.steps) if not chosen.mask[i]]
        assert keep[j] == sum(min(oldest, default=j + 1) <= x <= j for x in computed)


def test_the_rule_keeps_what_its_forecast_may_need():
    rows = residuals()
    found = calibrated(rows)
    for forecast, most in (("hold", 1), ("linear", 2), ("calibrated", 2)):
        host = Host(rows)
        host.run(Session(found, **RULE, forecast=forecast))
        assert host.held == most
        assert not any(host.kept[name] for name in rows)  # nothing is needed after the last step


@LAWS
@given(strategies.calibrations(min_size=3, max_size=14), st.sampled_from(FORECASTS), st.booleans())
def test_a_run_forecasts_what_simulate_said(found, forecast, planned):
    planned = planned or forecast == "second-order"
    settings = {"speedup": 1.0 if found.window < 2 else 1.4} if planned else RULE
    if planned:
        expected = plan(found, **settings, forecast=forecast)
    else:
        expected = simulate(found, **settings, forecast=forecast, batched=True)
    with Session(found, **settings, forecast=forecast) as session:
        for i in range(found.steps):
            decision = session.decide(list(found.streams))
            assert decision.computes == expected.mask[i]
            for name in found.streams:
                c = session.coefficients(name) if decision.skip else ()
                assert c == pytest.approx(expected.stream_coefficients(name)[i], abs=1e-12)
            session.commit()


def test_a_linear_forecast_follows_the_noise_levels():
    settings = RULE | {"retention": 0.4, "forecast": "linear", "damping": 0.5}
    schedule = simulate([1.0] * 5, sigmas=[1.0, 0.8, 0.5, 0.4, 0.2], **settings)
    assert schedule.strip == "██···"
    assert schedule.coefficients[0] == ((), (), *((pytest.approx(0.5 * c),) for c in (1.5, 2, 3)))
    mask = Schedule.from_mask([1, 1, 0, 0])
    with Session(mask, sigmas=[1.0, 0.8, 0.5, 0.4], forecast="linear") as session:
        told = []
        for _ in range(4):
            told.append(session.coefficients() if session.decide().skip else None)
            session.commit()
    assert told == [None, None, (pytest.approx(1.5),), (pytest.approx(2.0),)]


def test_hold_overrides_a_plan():
    chosen = plan(calibrated(residuals()), speedup=2)
    assert any(map(any, chosen.coefficients))
    with Session(chosen, forecast="hold") as session:
        for _ in range(chosen.steps):
            call = session.call(["cond"])
            assert call.streams[0].coefficients == ()
            assert call.streams[0].keep in (0, 1)
            call.commit()


def test_a_forecast_planned_for_other_residuals_is_not_used():
    chosen = Schedule.from_mask([1, 1, 0, 0, 1, 1, 0], coefficients=[0, 0, 0.5, 0.9, 0, 0, 0.7])
    told = []
    with Session(chosen) as session:
        for step in range(7):
            told.append(session.coefficients() if session.decide().skip else None)
            # Step 2 is computed after all: what the plan meant by the last two residuals is no longer so at step 3.
            session.commit(Decision.MISMATCH if step == 2 else None)
    assert told == [None, None, (0.5,), (), None, None, (0.7,)]


def test_an_older_residual_matters_only_to_the_forecast_that_uses_it():
    chosen = Schedule.from_mask([1, 0, 1, 0, 1, 1, 0, 0], coefficients=[0, 0, 0, 0, 0, 0, 0.5, [0.9, 0.1]])
    told = []
    with Session(chosen) as session:
        for step in range(8):
            call = session.call(["single"])
            told.append(call.streams[0].coefficients if call.skip else call.streams[0].keep)
            call.commit(Decision.MISMATCH if step == 3 else None)
    # Of the three computed last, 5, 4 and 3, the plan knows two.
    assert told == [1, (), 1, (), 2, 3, (0.5,), ()]
    with Session(chosen) as session:
        for _ in range(8):
            told.append(session.coefficients() if session.decide().skip else None)
            session.commit()
    assert told[8:] == [None, (), None, (), None, None, (0.5,), (0.9, 0.1)]


def test_coefficients_are_asked_between_decide_and_commit():
    with Session([1.0] * 3, **RULE) as session:
        with pytest.raises(RunError, match=r"call decide\(\) first"):
            session.coefficients("a")
        session.decide("a")
        assert session.coefficients("a") == ()
        with pytest.raises(RunError, match="stream='b'"):
            session.coefficients("b")


def test_errors_are_told_of_what_was_decided_in_a_run_that_is_compared():
    with Session([1.0] * 3, **RULE) as session:
        call = session.call(["a"])
        assert call.streams[0].check is None
        with pytest.raises(RunError, match="no safeguard"):
            call.commit(errors={"a": 0.1})
        call.commit()
    chosen = plan(calibrated(residuals()), computed=5)
    with Session(chosen, safeguard=True) as session:
        call = session.call(["cond"])
        with pytest.raises(RunError, match="errors has 'b': nothing is decided for it"):
            call.commit(errors={"b": 0.1})
        call.commit()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forecast": "calibrated"}, "forecast='calibrated' needs a Calibration"),
        ({"forecast": "quadratic"}, "forecast='quadratic' is not known; use one of 'hold', 'linear', 'calibrated', 'second"),
        ({"forecast": "second-order"}, "forecast='second-order' is fitted to a plan; try speedup=2.0"),
        ({"damping": 0.5}, "damping=0.5 is for forecast='linear'"),
        ({"forecast": "linear", "damping": 2}, "damping=2 must be from 0 to 1"),
    ],
)
def test_forecasts_are_checked(settings, message):
    with pytest.raises(ArgumentError, match=message):
        simulate([1.0] * 4, **RULE, **settings)


# Coefficients of schedules.


def test_schedules_carry_coefficients_that_equality_ignores():
    plain = Schedule.from_mask([1, 1, 0, 0])
    made = Schedule.from_mask([1, 1, 0, 0], coefficients=[0, 0, 0.5, 1.0], errors=[0, 0, 0.1, 0.2])
    assert plain == made
    assert plain.coefficients == (((),) * 4,)
    assert made.stream_coefficients("single") == ((), (), (0.5,), (1.0,))
    second = Schedule.from_mask([1, 1, 0, 0], coefficients=[0, [], [0.5, 0.0], (0.5, -0.25)])
    assert second.stream_coefficients("single") == ((), (), (0.5,), (0.5, -0.25))
    assert Schedule.from_dict(json.loads(json.dumps(second.to_dict()))).coefficients == second.coefficients
    assert Schedule.from_mask(
        [1, 1, 0, 0], coefficients=iter(np.array([[0, 0], [0, 0], [0.5, 0], [0.5, -0.25]]))
    ).coefficients == (second.coefficients)
    assert (made.errors, made.worst) == ((0, 0, 0.1, 0.2), 0.2)
    assert made.rms_error == pytest.approx(math.sqrt(0.05 / 4))
    again = Schedule.from_dict(json.loads(json.dumps(made.to_dict())))
    assert (again.coefficients, again.modelled) == (made.coefficients, made.modelled)
    assert "coefficients" not in plain.to_dict()["streams"]["single"]
    both = Schedule.from_mask({"a": [1, 0], "b": [1, 0]}, coefficients={"a": [0, 2.0]})
    assert both.coefficients == (((), (2.0,)), ((), ()))
    with pytest.raises(ArgumentError, match=r"coefficients\['single'\]\[1\]=\[1, 2, 3\] has 3 coefficients; give at most 2"):
        Schedule.from_mask([1, 0], coefficients=[0, [1, 2, 3]])
    with pytest.raises(ArgumentError, match=r"coefficients\['single'\]\[1\]='x' must be a number"):
        Schedule.from_mask([1, 0], coefficients=[0, "x"])
    with pytest.raises(ArgumentError, match=r"coefficients\['single'\]\[1\]=0.5 must be 0: that step computes"):
        Schedule.from_mask([1, 1, 0], coefficients=[0, 0.5, 0])
    with pytest.raises(ArgumentError, match=r"coefficients\['single'\] has 1 values for 2 steps"):
        Schedule.from_mask([1, 0], coefficients=[0])
    with pytest.raises(ArgumentError, match=r"errors has 1 values for 2 steps"):
        Schedule.from_mask([1, 0], errors=[0])
    with pytest.raises(ArgumentError, match="checks has 1 values"):
        Schedule.from_mask([1, 0], checks={"single": [None]})


# Runs that are planned when their length is known.


@pytest.mark.parametrize("start", [0, 7])
def test_a_run_is_planned_for_its_own_steps_and_beginning(start):
    rows = residuals()
    found = calibrated(rows)
    session = Session(found, speedup=2.0)
    ran = Host(rows).run(session, start=start)
    assert session.schedule == ran == plan(found, speedup=2.0, part=(start, 20) if start else None)
    assert Host(rows).run(session) == plan(found, speedup=2.0)  # the next run is planned afresh
    other = Session(found, steps=31, error=0.1)
    assert other.schedule == plan(found, steps=31, error=0.1)


def test_targets_are_checked_when_the_session_is_made():
    found = calibrated(residuals())
    for wrong, message in [
        ({"speedup": 2.0, "computed": 3}, "pass one of speedup, computed and error"),
        ({"speedup": 2.0, "threshold": 0.1}, "threshold=0.1 is for the rule"),
        ({"speedup": 2.0, "semantics": "diffusers"}, "semantics='diffusers' is for the rule"),
        ({"speedup": 2.0, "start_step": 2}, "start_step=2 is for the rule"),
        ({"objective": "gap"}, "no target given"),
        ({"computed": 1, "max_skips": 2}, "computed=1 leaves 1 of 20"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            Session(found, **wrong)
    with pytest.raises(ArgumentError, match=r"speedup=2\.0 contradicts schedule"):
        Session(plan(found, computed=5), speedup=2.0)
    with pytest.raises(ArgumentError, match="needs a Calibration"):
        Session([1.0] * 5, threshold=0.1, max_skips=2, retention=0.0, forecast="calibrated")
    assert Session([1.0, 1.1] * 5, speedup=2.0).schedule.computed == 5
    assert Session([1.0, 1.1] * 5, speedup=2.0, forecast="calibrated").schedule.computed == 5
    assert Session("flux.1-dev", steps=20, speedup=2.0).schedule == plan("flux.1-dev", steps=20, speedup=2.0)


# The safeguard.


def test_a_run_that_goes_as_planned_is_left_alone():
    rows = residuals()
    session = Session(calibrated(rows), speedup=2.0, safeguard=True)
    assert Host(rows).run(session) == session.schedule == plan(calibrated(rows), speedup=2.0)
    assert session.replans == ()


@LAWS
@given(st.floats(2.1, 50), st.integers(2, 9), st.booleans())
def test_a_run_that_is_off_is_planned_again_within_the_error_it_accepted(off, computed, joint):
    rows = residuals()
    found = calibrated(rows)
    first = plan(found, computed=computed)
    session = Session(found, computed=computed, safeguard=Safeguard(plan=first, floor=0.0))
    ran = Host(rows).run(session, joint=joint, off=off)
    assert session.replans
    replan = session.replans[0]
    assert replan.measured == pytest.approx(off * replan.expected, rel=0.01)
    assert replan.schedule.mask[: replan.step + 1] == first.mask[: replan.step + 1]
    assert ran.computed >= first.computed
    factor = replan.measured / replan.expected
    alone = plan(found, forced=[i for i, m in enumerate(first.mask) if m], computed=computed, objective="latent")
    if replan.outcome == "replanned":
        rest = [e for row in replan.schedule.modelled for e in row[replan.step + 1 :]]
        assert max(rest) * factor <= alone.worst * 1.001
    else:
        assert all(replan.schedule.mask[replan.step :])
    if joint:
        assert ran == session.schedule == session.replans[-1].schedule
    assert Host(rows).run(session) == first  # the next run begins with the plan


def test_a_plan_from_a_file_falls_back_to_computing():
    rows = residuals(streams=("only",))
    chosen = Schedule.from_dict(plan(calibrated(rows), computed=5).to_dict())
    session = Session(chosen, safeguard=1.5)
    ran = Host(rows).run(session, off=10.0)
    (replan,) = session.replans
    assert replan.outcome == "computes"
    assert all(ran.mask[replan.step :])
    assert ran == replan.schedule


def test_extra_steps_can_be_limited():
    rows = residuals(streams=("only",))
    found = calibrated(rows)
    first = plan(found, computed=5)
    for extra in (0, 2):
        session = Session(first, safeguard=Safeguard(plan=first, calibration=found, extra=extra, floor=0.0))
        ran = Host(rows).run(session, off=10.0)
        assert ran.computed <= 5 + extra * len(session.replans)


def test_what_is_measured_as_nan_computes_the_rest():
    found = calibrated(residuals(streams=("only",)))
    guard = Safeguard(plan=plan(found, computed=5))
    at = guard.plan.mask.index(True, 1)
    assert guard.compare("only", at, math.nan).outcome == "computes"
    assert guard.compare("only", at, 0.0) is None
    assert guard.compare("only", 99, 1.0) is None
    assert guard.compare("only", 0, 1.0) is None  # nothing to compare at the first step


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 0.5}, "margin=0.5 must be >= 1"),
        ({"floor": -1}, "floor=-1 must be >= 0"),
        ({"extra": -1}, "extra=-1 must be a whole number"),
        ({"plan": 3}, "plan=3 must be a Schedule"),
    ],
)
def test_the_safeguard_checks_its_settings(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Safeguard(**{"plan": Schedule.from_mask([1, 0])} | settings)


def test_a_safeguard_as_a_number_is_its_margin():
    chosen = plan(calibrated(residuals()), computed=5)
    with pytest.raises(ArgumentError, match=r"safeguard=0\.5 must be >= 1"):
        Session(chosen, safeguard=0.5)
    with pytest.raises(ArgumentError, match="safeguard=True compares a run with its plan"):
        magpolicy.attach(object(), preset="flux", safeguard=True)


def test_a_schedule_can_be_changed_during_a_run():
    with Session(Schedule.from_mask([1, 0, 0, 0])) as session:
        session.decide()
        session.commit()
        session.follow(Schedule.from_mask([1, 0, 1, 0]))
        for _ in range(3):
            session.decide()
            session.commit()
        assert [entry.decision.computes for entry in session.trace] == [True, False, True, False]
        with pytest.raises(ArgumentError, match="this run has 4"):
            session.follow(Schedule.from_mask([1, 0, 1]))


def test_the_next_run_goes_by_its_own_schedule_again():
    session = Session(Schedule.from_mask([1, 0, 0, 0]))
    masks = []
    for left in (True, False):
        with session:
            for step in range(4):
                session.decide()
                session.commit()
                if left and step == 1:
                    session.follow(Schedule.from_mask([1, 0, 1, 1]))
            masks.append([entry.decision.computes for entry in session.trace])
    assert masks == [[True, False, True, True], [True, False, False, False]]


def test_attaching_takes_a_calibration_and_a_target(monkeypatch):
    found = calibrated(residuals())
    requests = []
    monkeypatch.setattr("magpolicy.hosts._dispatch.attach", lambda target, request: requests.append(request))
    magpolicy.attach(object(), calibration=found, speedup=2.0, safeguard=True)
    magpolicy.attach(object(), preset=found, speedup=2.0)
    magpolicy.attach(object(), curve=found, **RULE, forecast="calibrated")
    guarded, planned, ruled = (request.session(30) for request in requests)
    assert guarded.schedule == planned.schedule == plan(found, steps=30, speedup=2.0)
    assert ruled.schedule is None
    with pytest.raises(ArgumentError, match="calibration=3 must be a Calibration"):
        magpolicy.attach(object(), calibration=3, speedup=2.0)
    with pytest.raises(ArgumentError, match="curve, calibration given: pass one"):
        magpolicy.attach(object(), calibration=found, curve=found.curve, speedup=2.0)
    with pytest.raises(ArgumentError, match="computed=1 leaves 1 of 20"):
        magpolicy.attach(object(), calibration=found, computed=1, max_skips=2, steps=20)


def test_a_calibration_that_says_nothing_of_a_stream_serves_it_by_its_first():
    found = calibrated(residuals(streams=("only",)))
    with Session(attrs.evolve(found, name="x"), computed=5) as session:
        for i in range(20):
            decision = session.decide("another")
            assert session.coefficients("another") == session.schedule.coefficients[0][i]
            assert decision.computes == session.schedule.mask[i]
            session.commit()
