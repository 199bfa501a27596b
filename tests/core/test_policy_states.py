"""What the state of a run is after each thing that can happen to it, one at a time."""

import math

import numpy as np
import pytest

from magpolicy import (
    ArgumentError,
    Calibration,
    Curve,
    Decision,
    MagPolicy,
    RunError,
    Safeguard,
    Schedule,
    Semantics,
    Session,
    plan,
)
from magpolicy.policy._policy import ScheduledPolicy, decide_together, settle_together
from magpolicy.policy._step_table import Limits, build_step_tables

RATIOS = [1.0, 0.9, 0.8, 1.1, 0.95, 1.05]
RULE = {"threshold": 0.5, "max_skips": 3, "retention": 0.1}


def policy(**more):
    return MagPolicy(RATIOS, **RULE | more)


def moving(steps=12, noise=0.05):
    """Residuals that turn evenly, each a little off."""
    dice = np.random.default_rng(0)
    angles = np.linspace(0, 1.2, steps)
    return [np.array([[np.cos(a), np.sin(a), *dice.normal(size=4) * noise]]) for a in angles]


def measured(**more):
    return Calibration.from_residuals(moving(), sigmas=[1 - i / 12 for i in range(12)], **more)


@pytest.mark.parametrize("steps", [(3,), (3, 4), (2, 3, 4)], ids=str)
def test_a_proposal_that_is_forgotten_changes_nothing(steps):
    """Whichever steps were proposed in between, the state is that before the first of them."""
    one = policy()
    one.settle(one.propose())
    before = one.state_dict()
    for step in steps:
        one.propose(step)
    assert one.state_dict() != before
    one.forget()
    assert one.state_dict() == before
    one.forget()
    assert one.state_dict() == before


@pytest.mark.parametrize(
    ("kind", "errors"),
    [("absolute", [0.0, 0.1, 0.1 + 0.125]), ("signed", [0.0, 0.1, 0.1 - 0.125]), ("step", [0.0, 0.1, 0.1 + 0.25])],
)
def test_what_a_skip_adds_to_the_error(kind, errors):
    """The ratios 0.9 and 1.25 make 1.125 of the residual."""
    one = MagPolicy([1.0, 0.9, 1.25, 1.0], threshold=9, max_skips=9, retention=0.0, semantics=Semantics(error=kind))
    found = []
    for _ in range(3):
        assert one.tested_error == 0
        decision = one.propose()
        assert one.tested_error == pytest.approx(errors[len(found)])
        one.settle(decision)
        found.append(one.accumulated_error)
    assert found == pytest.approx(errors)
    assert one.accumulated_ratio == pytest.approx(1.125)
    one.settle_rejected(Decision.REUSED)
    assert (one.accumulated_ratio, one.accumulated_error, one.skips) == (1, 0, 0)


def test_an_error_as_large_as_the_threshold():
    for comparison, skips in (("<=", True), ("<", False)):
        one = MagPolicy([1.0, 0.5], threshold=0.5, max_skips=1, retention=0.0, semantics=Semantics(comparison=comparison))
        one.decide()
        assert one.decide().skip is skips


def test_settings_are_taken_up_to_their_bounds():
    for name, good, wrong in (
        ("retention", (0, 1), (-0.01, 1.01)),
        ("threshold", (0, 1e9), (-0.01,)),
        ("max_skips", (0, 10**9), (-1,)),
        ("start_step", (0, 5), (-1,)),
    ):
        for value in good:
            policy(**{name: value})
        for value in wrong:
            with pytest.raises(ArgumentError, match=f"{name}={value}"):
                policy(**{name: value})


def test_a_run_is_begun_within_it_and_decided_to_its_end():
    one = policy()
    for step in (0, 5, 6):
        one.reset(step)
        assert (one.step, one.steps) == (step, 6)
        for _ in range(step, 6):
            one.decide()
        with pytest.raises(RunError, match="6 steps are all decided"):
            one.decide()
    for step in (-1, 7):
        with pytest.raises(ArgumentError, match=f"step={step}"):
            one.reset(step)
    with pytest.raises(ArgumentError, match="step=7 lies outside this run of 6 steps; use 0 to 5"):
        one.reset(7)


def test_only_a_state_that_could_have_been_saved_is_loaded():
    one = policy()
    one.decide()
    one.decide()
    saved = one.state_dict()
    assert (saved["version"], saved["steps"], saved["step"], saved["skips"], saved["computed"]) == (1, 6, 2, 1, True)
    for name, good, wrong in (
        ("version", (), (0, 2)),
        ("steps", (), (5, 7)),
        ("step", (0, 6), (-1, 7)),
        ("skips", (0, 9), (-1,)),
        ("accumulated_ratio", (0, 0.5), (-0.5,)),
        ("accumulated_error", (-3.0, 0.5), (math.nan,)),
    ):
        for value in good:
            one.load_state_dict(saved | {name: value})
            assert one.state_dict() == saved | {name: value}
        one.load_state_dict(saved)
        for value in wrong:
            with pytest.raises(ArgumentError):
                one.load_state_dict(saved | {name: value})
            assert one.state_dict() == saved
    for keys in (saved | {"more": 1}, {name: value for name, value in saved.items() if name != "skips"}):
        with pytest.raises(ArgumentError, match="has keys"):
            one.load_state_dict(keys)


@pytest.mark.parametrize(
    ("joint", "skips"),
    [("all", [True, False, False, False]), ("any", [True, True, True, False]), ("first", [True, True, False, False])],
)
def test_how_two_streams_decide_one_call(joint, skips):
    """Both would skip, the first one, the second one, none."""
    found = []
    for ratios in ((1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (3.0, 3.0)):
        policies = [MagPolicy([1.0, r], threshold=0.1, max_skips=1, retention=0.0) for r in ratios]
        for _ in range(2):
            own, decided, errors = decide_together(policies, joint)
            settle_together(policies, own, decided)
        found.append(decided[0].skip)
        assert len({decision.skip for decision in decided}) == 1
        assert [decision is Decision.JOINT for decision in decided] == [
            not decided[0].skip and decision.skip for decision in own
        ]
        assert errors == pytest.approx([abs(1 - r) for r in ratios])
        assert [p.accumulated_ratio for p in policies] == [1.0, 1.0]
        assert [p.skips for p in policies] == [int(decision.skip and decided[0].skip) for decision in own]
    assert found == skips


def test_what_has_no_residual_makes_a_call_compute_whoever_decides():
    for joint in ("all", "any", "first"):
        policies = [MagPolicy([1.0, 1.0], threshold=1, max_skips=1, retention=0.0) for _ in range(2)]
        policies[0].decide()
        policies[1].step = 1
        assert decide_together(policies, joint)[1] == [Decision.JOINT, Decision.NO_RESIDUAL]


def test_a_forbidden_step_resets_what_has_accumulated_or_passes_by():
    for effect, ratio in (("reset", 1.0), ("bypass", 0.9)):
        semantics = Semantics(interpolation="round", forbidden_index=2, forbidden_effect=effect)
        one = MagPolicy([1.0, 0.9, 0.9, 0.9], threshold=9, max_skips=9, retention=0.0, semantics=semantics)
        assert [one.decide() for _ in range(3)] == [Decision.NO_RESIDUAL, Decision.REUSED, Decision.FORBIDDEN]
        assert one.accumulated_ratio == pytest.approx(ratio)


def test_steps_that_were_left_out_count_in_the_ratio():
    one = policy()
    one.settle(one.propose())
    one.settle(one.propose(3))
    assert one.accumulated_ratio == pytest.approx(0.9 * 0.8 * 1.1)
    assert one.step == 4
    for step in (3, 6, 7):
        with pytest.raises(RunError, match="cannot follow: the next step is 4 of 6"):
            one.propose(step)


def test_a_schedule_forgets_a_proposal_too():
    with Session(Schedule.from_mask([1, 0, 1, 0])) as session:
        session.call(["single"]).commit()
        for step in (2, 3):
            session.call(["single"], step=step).cancel()
            assert session.step() == 1
        session.call(["single"]).commit()
        assert [entry.step for entry in session.trace] == [0, 1]


def test_a_schedule_goes_on_to_later_steps_alone():
    one = ScheduledPolicy([True, False, False, True])
    assert (one.skips, one.accumulated_error, one.accumulated_ratio, one.tested_error) == (0, 0, 1, 0)
    assert one.propose(1) is Decision.NO_RESIDUAL
    one.settle(Decision.NO_RESIDUAL)
    for step in (0, 1, 4, 5):
        with pytest.raises(RunError, match="cannot follow: the next step is 2 of 4"):
            one.propose(step)
    assert one.settle(one.propose()) is Decision.REUSED
    assert (one.step, one.skips) == (3, 1)


def test_the_schedule_that_is_followed_brings_its_forecasts():
    first = Schedule.from_mask([1, 1, 0, 0, 0, 0], coefficients=[0, 0, 0.1, 0.2, 0.3, 0.4])
    other = Schedule.from_mask([1, 1, 1, 0, 1, 0], coefficients=[0, 0, 0, 0.7, 0, (0.8, 0.2)])
    with Session(first) as session:
        for _ in range(2):
            session.call(["single"]).commit()
        session.follow(other)
        found, kept = [], []
        for _ in range(4):
            call = session.call(["single"])
            found.append(call.streams[0].coefficients)
            kept.append(call.streams[0].keep)
            call.commit()
    assert found == [(), (0.7,), (), (0.8, 0.2)]
    assert kept[2] == 3
    assert session.schedule == other


def test_only_a_guarded_run_compares_and_keeps_two():
    calibration = measured()
    for guard, compares in ((None, False), (False, False), (True, True), (3.0, True)):
        with Session(calibration, steps=12, computed=6, forecast="hold", safeguard=guard) as session:
            checks, kept = [], []
            for step in range(12):
                (stream,) = (call := session.call(["single"])).streams
                if not call.skip and step < 11:
                    checks.append(stream.check is not None)
                    kept.append(stream.keep)
                call.commit()
        assert any(checks) is compares
        assert min(kept[:-1]) == (2 if compares else 1)
        assert max(kept) == (2 if compares else 1)


def test_errors_are_refused_where_nothing_is_compared():
    with Session(measured(), steps=12, computed=6) as session:
        call = session.call(["single"])
        with pytest.raises(RunError, match="has no safeguard"):
            call.commit(errors={"single": 0.5})
        call.commit()
    with Session(measured(), steps=12, computed=6, safeguard=True) as session:
        call = session.call(["single"])
        with pytest.raises(RunError, match="'other'"):
            call.commit(errors={"other": 0.5})
        call.commit(errors={})
        assert session.replans == ()


def test_a_guard_alarms_above_both_its_margin_and_its_floor():
    schedule = plan(measured(), steps=12, computed=6)
    at = next(i for i in range(2, 12) if schedule.mask[i] and schedule.checks[0][i])
    expected = schedule.checks[0][at][1]
    for margin, floor in ((1.0, 0.0), (2.0, 0.0), (2.0, 10 * expected)):
        guard = Safeguard(plan=schedule, margin=margin, floor=floor)
        bound = max(margin * expected, floor)
        assert guard.compare("single", at, bound) is None
        assert guard.compare("single", at, bound * 0.99) is None
        found = guard.compare("single", at, bound * 1.01)
        assert (found.step, found.measured, found.expected) == (at, bound * 1.01, expected)
        assert found.outcome == "computes"
        assert found.schedule.mask[: at + 1] == schedule.mask[: at + 1]
        assert all(found.schedule.mask[at:])
        assert guard.compare("single", at, math.nan).outcome == "computes"
    for step in (-1, 0, 12):
        assert Safeguard(plan=schedule).compare("single", step, math.inf) is None


def test_what_a_call_is_revised_to_and_when_it_is_over():
    with Session(RATIOS, **RULE) as session:
        first = session.call(["single"])
        with pytest.raises(RunError, match="can only be revised to compute"):
            first.commit(Decision.REUSED)
        first.commit()
        with pytest.raises(RunError, match="ended already"):
            first.commit()
        second = session.call(["single"])
        assert second.skip
        second.commit(Decision.NO_RESIDUAL)
        assert (second.skip, second.decision) == (False, Decision.NO_RESIDUAL)
        assert session.trace[-1].decision is Decision.NO_RESIDUAL
        assert session.trace[-1].accumulated_ratio == 1.0
        assert (session.step(), session.remaining()) == (2, 4)
        first.cancel()
        assert session.step() == 2


def test_a_run_begins_where_it_is_told():
    session = Session(RATIOS, **RULE)
    for step in (6, 7, 600):
        with pytest.raises(ArgumentError, match=f"step={step} lies outside this run of 6 steps; use 0 to 5"):
            session.begin(step)
    session.begin(2)
    assert (session.step(), session.remaining()) == (2, 4)
    with pytest.raises(RunError, match="under way already"):
        session.begin()
    with pytest.raises(RunError, match="before this run's first step 2"):
        session.decide(step=1)
    with pytest.raises(RunError, match="past this run's 6 steps"):
        session.decide(step=6)
    with pytest.raises(ArgumentError, match="step=-1 must be"):
        session.decide(step=-1)
    assert session.decide() is Decision.NO_RESIDUAL
    with pytest.raises(RunError, match="step 2 is not committed"):
        session.decide()
    session.commit()
    with pytest.raises(RunError, match="nothing is decided"):
        session.commit()
    session.end()
    assert not session.active
    with pytest.raises(RunError, match="no run is under way"):
        session.decide()


def test_a_part_of_a_run_follows_a_schedule_of_that_part():
    session = Session([1.0] * 8, threshold=1, max_skips=8, retention=0.0).begin(3)
    part = Schedule.from_mask([1, 0, 1, 0, 1], first_step=3)
    for steps, first in ((5, 2), (5, 4), (4, 3), (6, 3), (4, 2)):
        with pytest.raises(ArgumentError, match=f"steps {first} to {first + steps - 1}, this run has 8; pass one that ends"):
            session.follow(Schedule.from_mask([1] * steps, first_step=first))
    session.follow(part)
    assert session.schedule == part
    for step in range(3, 8):
        assert session.decide().computes is part.mask[step - 3]
        session.commit()
    session.end()


@pytest.mark.parametrize("first", [0, 1, 2, 5])
def test_a_part_of_a_run_is_planned_as_that_part(first):
    calibration = measured()
    session = Session(calibration, speedup=2.0).begin(first)
    assert session.schedule == plan(calibration, speedup=2.0, part=(first, 12) if first else None)


def test_a_call_under_way_keeps_what_the_schedule_that_is_followed_uses():
    with Session(Schedule.from_mask([1, 0, 1])) as session:
        call = session.call(["a"])
        assert call.streams[0].keep == 1
        session.follow(Schedule.from_mask([1, 1, 1]))
        assert call.streams[0].keep == 0
        session.follow(Schedule.from_mask([1, 0, 0]))
        assert call.streams[0].keep == 1


def test_a_call_is_where_the_host_is_or_where_its_streams_are():
    with Session([1.0] * 6, **RULE) as session:
        assert session.call(["a"]).step == 0
        session.cancel()
        for earliest, at in ((0, 0), (0, 1), (4, 4), (2, 5)):
            call = session.call(["a"], earliest=earliest)
            assert call.step == at
            call.commit()
        assert session.call(["a"]) is None
        assert session.call(["a", "b"], earliest=3) is None, "one of them is over"
        assert session.call(["b"], step=2).step == 2
        session.commit()
        for step in ("x", 1.5, -1):
            with pytest.raises(ArgumentError, match="step="):
                session.call(["b"], step=step)
        with pytest.raises(TypeError, match="positional"):
            session.call(["b"], 2)
        with pytest.raises(ArgumentError, match="at least one stream"):
            session.call([])
        with pytest.raises(ArgumentError, match="each once"):
            session.call(["b", "b"])
        assert (session.step("b"), session.remaining("b")) == (3, 3)


def test_noise_levels_are_those_of_the_run_or_the_ones_told():
    with Session([1.0] * 3, sigmas=[1.0, 0.6, 0.3], **RULE) as session:
        for sigma in (None, 0.0, 0.55):
            session.decide(sigma=sigma)
            session.commit()
        assert [entry.sigma for entry in session.trace] == [1.0, 0.0, 0.55]
    with Session([1.0] * 3, steps=3, **RULE) as session:
        session.decide(sigma=0.25)
        session.commit()
        session.decide()
        session.commit()
        assert [entry.sigma for entry in session.trace] == [0.25, None]


def test_what_is_computed_is_of_use_while_a_skip_may_come():
    with Session([1.0] * 3, **RULE) as session:
        found = []
        for _ in range(3):
            call = session.call(["a"])
            found.append((call.useful, call.streams[0].keep))
            call.commit(Decision.NO_RESIDUAL if call.skip else None)
    assert found == [(True, 1), (True, 1), (False, 0)]
    with Session(Schedule.from_mask([1, 1, 0])) as session:
        call = session.call(["a"])
        assert (call.useful, call.streams[0].keep) == (False, 0), "it is computed again before a skip"
        call.commit()
        assert session.call(["a"]).useful


def test_what_something_else_answered_is_neither_computed_nor_reused():
    with Session([1.0] * 4, **RULE) as session:
        session.call(["a"]).commit(Decision.ANSWERED)
        (entry,) = session.trace
        assert (entry.decision, entry.coefficients) == (Decision.ANSWERED, ())
        assert (session.step("a"), session.trace[-1].skips) == (1, 0)


def test_a_computed_call_keeps_its_own_reason():
    with Session([1.0] * 4, **RULE) as session:
        call = session.call(["a"])
        call.commit(Decision.NOT_FINITE)
        assert (call.decision, call.streams[0].decision) == (Decision.NO_RESIDUAL, Decision.NO_RESIDUAL)
        assert session.call(["a"]).skip


def test_a_call_of_several_streams_says_why_it_computes():
    with Session({"a": [1.0, 1.0, 9.0], "b": [1.0, 9.0, 1.0]}, threshold=0.5, max_skips=3, retention=0.0) as session:
        session.decide(["a"])
        session.commit()
        assert session.decide(["a", "b"], step=1) is Decision.NO_RESIDUAL
        assert [stream.decision for stream in session._pending.streams] == [Decision.JOINT, Decision.NO_RESIDUAL]
        session.commit()
        assert session.decide(("b", "a")) is Decision.THRESHOLD


def test_a_run_that_ends_is_told_once_and_goes_on_at_the_beginning():
    ended = []
    session = Session([1.0, 1.1, 0.9], **RULE)
    assert repr(session) == "<Session of 3 steps, not under way, 0 decisions>"
    session.end()
    with session:
        session.on_end(lambda: ended.append(session.active))
        session.decide()
        assert repr(session) == "<Session of 3 steps, under way, 0 decisions>"
        session.commit()
    session.end()
    assert ended == [False]
    assert repr(session) == "<Session of 3 steps, not under way, 1 decisions>"
    with session:
        assert session.trace == ()
        assert (session.step(), session.doubted, session.replans) == (0, (), ())
    assert ended == [False]
    with pytest.raises(ArgumentError, match="step=3 lies outside this run of 3 steps; use 0 to 2"):
        session.begin(3)


def test_a_long_run_has_as_many_evaluations_as_steps():
    with Session([1.0] * 300, **RULE) as session:
        for step in range(300):
            call = session.call(["a"])
            assert (call.step, session.remaining("a")) == (step, 300 - step)
            call.commit()
        assert session.call(["a"]) is None
        assert session.call(["a"], earliest=3) is None


def test_the_end_of_a_run_follows_a_schedule_of_the_end():
    session = Session([1.0] * 8, threshold=1, max_skips=8, retention=0.0).begin(5)
    session.follow(Schedule.from_mask([1, 0, 1], first_step=5))
    found = []
    for _ in range(3):
        found.append(session.decide().computes)
        session.commit()
    assert found == [True, False, True]


def test_coefficients_are_of_the_stream_that_was_decided():
    with Session([1.0] * 3, **RULE) as session:
        session.decide("b")
        for other in ("a", "c"):
            with pytest.raises(RunError, match=f"stream='{other}'"):
                session.coefficients(other)
        assert session.coefficients("b") == ()


def unmeasured(cosines):
    """A run that is planned from nothing but the general prior, and what its comparisons say, by step."""
    levels = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    with Session(None, sigmas=levels, computed=6, forced=[0, 1, 2, 3]) as session:
        for step in range(10):
            call = session.call(["single"])
            call.commit(cosines={} if call.skip or step not in cosines else {"single": cosines[step]})
    return session


def test_skips_are_doubted_where_the_run_says_so_and_there_alone():
    """At step 2 the older of the two changes began at level 1, at which residuals move in directions of their own."""
    forecast = [i for i, c in enumerate(unmeasured({}).schedule.coefficients[0]) if c]
    assert forecast
    assert unmeasured({}).doubted == ()
    assert unmeasured({2: 0.9, 3: 0.9}).doubted == ()
    assert unmeasured({2: -0.9}).doubted == ()
    doubted = unmeasured({3: -0.9}).doubted
    assert doubted
    assert {step for step, _ in doubted} <= set(forecast)


@pytest.mark.parametrize("settings", [{"source": None}, {"source": None, "forecast": "hold"}, {"source": measured()}], ids=str)
def test_a_run_asks_whether_residuals_turn_until_three_comparisons_said_no(settings):
    """A run that nobody measured for, at computed steps that later skips use; what begins at level 1 is no comparison."""
    levels, told = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 0
    doubtful, asked, history = settings == {"source": None}, [], []
    with Session(**settings, sigmas=levels, computed=8) as session:
        for step in range(10):
            call = session.call(["single"])
            (stream,) = call.streams
            asked.append(stream.compares_turn)
            assert stream.compares_turn is (doubtful and stream.keep > 0 and told < 3)
            call.commit(cosines={} if call.skip else {"single": 0.9})
            if not call.skip:
                told += len(history) > 1 and levels[history[-2]] <= 0.95
                history.append(step)
    assert any(asked) is doubtful


def test_calls_that_are_counted_together_are_retained_in_turn():
    """int(2 * 9 * 0.17) = 3 calls, cond's first; a third stream, which no published implementation has, goes as the first."""
    curve = Curve({name: [1.0] * 9 for name in ("cond", "uncond", "reference")})
    for retention, leading in ((0.17, [2, 1, 2]), (0.23, [2, 2, 2]), (0.0, [0, 0, 0])):
        tables = build_step_tables(curve, 9, None, Limits(retention=retention), Semantics(retention="per_call"))
        assert [table.gates.count(Decision.RETENTION) for table in tables.values()] == leading


def test_ratios_are_read_at_the_levels_of_the_run_or_at_those_of_the_curve():
    curve = Curve([1.0, 0.9, 1.2, 0.8], sigmas=[1.0, 0.9, 0.5, 0.2])
    for sigmas, expected in ((None, curve.resample(steps=3)), ([0.95, 0.7, 0.3], curve.resample(sigmas=[0.95, 0.7, 0.3]))):
        table = build_step_tables(curve, 3, sigmas, Limits(retention=0.0), Semantics())["single"]
        assert table.ratios == expected.of("single")
    part = Curve([1.0, 1.1, 0.9], first_step=2)
    assert (part.steps, len(part), part.levels) == (5, 3, pytest.approx((0.6, 0.4, 0.2)))


@pytest.mark.parametrize("retention", ["one_more", "of_levels", "ceil"])
def test_a_run_that_is_retained_whole_computes_every_step(retention):
    """Two of these count a step more than the run has."""
    curve = Curve([1.0] * 300)
    for experts in (None, 100):
        limits = Limits(retention=1.0, expert_step=experts)
        gates = build_step_tables(curve, 300, None, limits, Semantics(retention=retention, boundary="keep"))["single"].gates
        assert gates == (Decision.RETENTION,) * 300
