"""What a session foresees of the evaluations to come: right where calls come as they came, and without a trace."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpolicy import Decision, Schedule, Session, semantics_names

RATIO = st.sampled_from([0.9, 0.97, 1.0, 1.0, 1.02, 1.1])
STEPS = 12
ROUNDS = ([("a",)], [("a", "b")], [("a",), ("b",)], [("a", "b"), ("c",)], [("c",), ("a",), ("b",)])


@st.composite
def sessions(draw):
    """How to make a session: by the rule, or by a schedule of its own for each stream."""
    if draw(st.booleans()):
        ratios = {name: draw(st.lists(RATIO, min_size=STEPS, max_size=STEPS)) for name in "abc"}
        how = {
            "threshold": draw(st.sampled_from([0.03, 0.1, 0.3])), "max_skips": draw(st.integers(1, 4)), "retention": 0.1,
            "forecast": draw(st.sampled_from(["hold", "linear"])),
            "semantics": draw(st.sampled_from(semantics_names())),
        }  # fmt: skip
        return lambda: Session(ratios, **how)
    row = st.lists(st.booleans(), min_size=STEPS - 1, max_size=STEPS - 1)
    masks = {name: [True, *draw(row)] for name in "abc"}
    coefficients = {name: [0 if m else (0.5, 0.2) for m in mask] for name, mask in masks.items()}
    return lambda: Session(Schedule.from_mask(masks, coefficients=coefficients))


def run(session, calls, *, asking):
    """Per call what was foreseen after it, and its decision and coefficients."""
    foreseen, made = [], []
    with session:
        for _ in range(STEPS):
            for streams in calls:
                call = session.call(streams)
                assert call.upcoming_skips() == {}, "a call is under way"
                made.append((streams, call.skip, {stream.name: stream.coefficients for stream in call.streams}))
                call.commit()
                foreseen.append(call.upcoming_skips() if asking else {})
    return foreseen, made, session.trace


@settings(max_examples=200, deadline=None)
@given(make=sessions(), calls=st.sampled_from(ROUNDS))
def test_in_regular_rounds_the_skips_before_the_next_computed_call_are_foreseen(make, calls):
    foreseen, made, trace = run(make(), calls, asking=True)
    assert foreseen[-1] == {}
    for place in range(len(calls), len(made)):  # in the first round nobody knows of the calls to come
        expected = {}
        for _, skip, coefficients in made[place : place + len(calls)]:
            if not skip:
                break
            expected |= coefficients
        assert foreseen[place - 1] == expected
    assert trace == run(make(), calls, asking=False)[2], "asking changes nothing"


def session(*mask):
    return Session(Schedule.from_mask(mask))


def step(session, *streams, at=None):
    call = session.call(streams, step=at)
    call.commit()
    return call


def test_nothing_is_foreseen_before_a_call_is_committed_and_after_the_run():
    planned = session(1, 0)
    with planned:
        call = planned.call(["a"])
        assert call.upcoming_skips() == {}
        call.commit()
        assert call.upcoming_skips() == {"a": ()}
    assert call.upcoming_skips() == {}
    with planned:
        assert call.upcoming_skips() == {}, "nor from the run before"


def test_a_revision_and_another_plan_are_heeded():
    with Session([1.0] * 6, threshold=0.1, max_skips=1, retention=0.1) as run:
        assert step(run, "a").upcoming_skips() == {"a": ()}
        call = run.call(["a"])
        call.commit(Decision.MISMATCH)
        assert call.upcoming_skips() == {"a": ()}, "it was computed, so a skip is due again"
        assert step(run, "a").upcoming_skips() == {}, "max_skips"
    with session(1, 0, 0, 1) as run:
        call = step(run, "a")
        run.follow(Schedule.from_mask((1, 1, 0, 1)))
        assert call.upcoming_skips() == {}
        assert step(run, "a").upcoming_skips() == {"a": ()}


def test_a_call_that_was_cancelled_is_to_come_yet():
    with session(1, 0, 0) as run:
        step(run, "a")
        call = run.call(["a"])
        call.cancel()
        assert call.upcoming_skips() == {"a": ()}


def test_streams_are_taken_to_be_called_as_they_were_last():
    with Session(Schedule.from_mask({"a": (1, 1, 0, 0), "b": (1, 1, 1, 0)})) as run:
        step(run, "a", "b")
        assert step(run, "a", "b").upcoming_skips() == {}, "jointly they compute"
        assert step(run, "a").upcoming_skips() == {"a": ()}, "it was alone, so it is taken to stay so"
        assert step(run, "b").upcoming_skips() == {"a": (), "b": ()}


@pytest.mark.parametrize("sits_out", ["b", "c"])
def test_a_stream_that_sits_out_hides_no_other(sits_out):
    """Its last evaluation is long ago, so it would be the next one, and what it does now is not known."""
    rows = {"a": (1, 0, 0, 0, 0), "b": (1, 1, 1, 1, 1), "c": (1, 0, 0, 0, 0)}
    with Session(Schedule.from_mask(rows)) as run:
        step(run, "a")
        step(run, sits_out)
        step(run, "a", at=1)
        assert step(run, "a", at=2).upcoming_skips() == {"a": ()}
