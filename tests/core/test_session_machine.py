"""Session against a second machine, written straight from the rule: both must decide and record the same."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from magpolicy import Decision, RunError, Session

STREAMS = ("cond", "uncond", "ref", "unknown")  # the source does not know the last one: it reads the first one's ratios
REVISIONS = (Decision.NO_RESIDUAL, Decision.MISMATCH, Decision.NOT_FINITE, Decision.UNSUPPORTED, Decision.PAST_END)


class Naive:
    """P, E and k per stream, as the rule is written down; it knows nothing of magpolicy but the names of reasons."""

    def __init__(self, ratios, threshold, max_skips, retained, window, forced):
        self.ratios, self.threshold, self.max_skips = ratios, threshold, max_skips
        self.retained, self.window, self.forced = retained, window, forced
        self.begin(0)

    def begin(self, step):
        self.first, self.state, self.trace = step, {}, []

    def get(self, name):
        return self.state.get(name, {"P": 1.0, "E": 0.0, "k": 0, "step": self.first, "computed": False})

    def test(self, name, step):
        """The stream's own answer and, where the rule was asked, its accumulators with this step in."""
        s, ratios = self.get(name), self.ratios.get(name, self.ratios["cond"])
        if step in self.forced:
            return "forced", None
        if step < self.retained:
            return "retention", None
        if not self.window[0] <= step <= self.window[1]:
            return "window", None
        if not s["computed"]:
            return "no_residual", None
        P = s["P"]
        for i in range(s["step"], step + 1):  # steps sat out count for the ratio, not for the error
            P *= ratios[i]
        E, k = s["E"] + abs(1 - P), s["k"] + 1
        why = "threshold" if self.threshold < E else "max_skips" if k > self.max_skips else "reused"
        return why, (P, E, k)

    def decide(self, names, step):
        tests = [self.test(name, step) for name in names]
        skip = all(why == "reused" for why, _ in tests)
        return [("joint" if why == "reused" and not skip else why, after) for why, after in tests]

    def commit(self, names, step, decided, revised):
        for name, (why, after) in zip(names, decided, strict=True):
            final = revised if revised and why == "reused" else why
            P, E, k = after if final == "reused" else (1.0, 0.0, 0)
            computed = self.get(name)["computed"] or final != "reused"
            self.state[name] = {"P": P, "E": E, "k": k, "step": step + 1, "computed": computed}
            self.trace.append((step, name, final, P, after[1] if after else 0.0, k))


# When a rule may come. By names: older Hypothesis reads the source of a lambda anew each time that it asks one.


def running(machine):
    return machine.session.active


def idle(machine):
    return not running(machine)


def awaits_a_decision(machine):
    return running(machine) and machine.pending is None


def has_decided(machine):
    return machine.pending is not None


class Sessions(RuleBasedStateMachine):
    @initialize(data=st.data(), steps=st.integers(1, 14))
    def resolve(self, data, steps):
        # Ratios on a coarse grid: sums then meet the threshold exactly now and then.
        grid = st.sampled_from([0.75, 0.875, 0.9375, 0.96875, 1.0, 1.0, 1.03125, 1.0625, 1.125, 1.25])
        row = st.lists(grid | st.floats(0.6, 1.6), min_size=steps, max_size=steps)
        known = data.draw(st.integers(1, 3))
        ratios = {name: data.draw(row) for name in STREAMS[:known]}
        threshold = data.draw(st.sampled_from([0.0, 0.03125, 0.0625, 0.125, 0.25, 0.5, 2.0]) | st.floats(0, 1))
        max_skips = data.draw(st.integers(0, 5))
        retention = data.draw(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5]) | st.floats(0, 0.6))
        start = data.draw(st.sampled_from([0, 0, 1, 3]))
        end = data.draw(st.none() | st.integers(-steps, steps + 1))
        forced = data.draw(st.sets(st.integers(-steps, steps - 1), max_size=2))
        self.steps = steps
        self.session = Session(
            ratios, threshold=threshold, max_skips=max_skips, retention=retention, start_step=start, end_step=end,
            forced=forced,
        )  # fmt: skip
        last = steps - 1 if end is None else end + steps if end < 0 else end
        self.model = Naive(
            ratios, threshold, max_skips, int(retention * steps + 0.5), (start, last), {f % steps for f in forced}
        )
        self.pending = None
        self.ended = 0

    def begin_at(self, step):
        self.session.begin(step)
        self.session.on_end(lambda: setattr(self, "ended", self.ended + 1))
        self.model.begin(step)

    @precondition(idle)
    @rule(share=st.sampled_from([0, 0, 0, 1, 3]))
    def begin(self, share):
        self.begin_at(min(share, self.steps - 1))

    @precondition(awaits_a_decision)
    @rule(
        names=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=3, unique=True),
        ahead=st.sampled_from([None, None, None, 0, 0, 1, 3]),
        as_text=st.booleans(),
    )
    def decide(self, names, ahead, as_text):
        at = [self.model.get(name)["step"] for name in names]
        step = max(at) if ahead is None else min(at) + ahead
        asked = names[0] if as_text and len(names) == 1 else names
        given_step = None if ahead is None else step
        if step >= self.steps or step < max(at):
            with pytest.raises(RunError):
                self.session.decide(asked, step=given_step)
            return  # and nothing has changed: the invariants look
        expected = self.model.decide(names, step)
        answer = self.session.decide(asked, step=given_step)
        assert answer.skip == all(why == "reused" for why, _ in expected)
        assert answer.reason == next((w for w, _ in expected if w not in ("reused", "joint")), expected[0][0])
        self.pending = (names, step, expected)

    @precondition(awaits_a_decision)
    @rule(
        names=st.lists(st.sampled_from(STREAMS), min_size=1, max_size=3, unique=True),
        host_is_at=st.none() | st.integers(0, 16),
        revised=st.none() | st.sampled_from(REVISIONS),
    )
    def call(self, names, host_is_at, revised):
        at = [self.model.get(name)["step"] for name in names]
        step = max(at) if host_is_at is None else max(*at, host_is_at)
        if max(at) < self.steps and not self.model.first <= step < self.steps:
            with pytest.raises(RunError):
                self.session.call(names, earliest=host_is_at)
            return
        call = self.session.call(names, earliest=host_is_at)
        if max(at) >= self.steps:
            assert call is None
            return
        expected = self.model.decide(names, step)
        skip = all(why == "reused" for why, _ in expected)
        assert (call.step, call.skip, call.decision.skip) == (step, skip, skip)
        assert [(s.name, s.decision.reason) for s in call.streams] == [*zip(names, [why for why, _ in expected], strict=True)]
        assert [s.keep for s in call.streams] == [int(step < self.steps - 1)] * len(names)  # of a rule that holds
        call.commit(revised)
        self.model.commit(names, step, expected, revised and revised.reason)
        with pytest.raises(RunError, match="is ended already"):
            call.commit()
        call.cancel()  # nothing happens

    @precondition(has_decided)
    @rule(revised=st.none() | st.none() | st.sampled_from(REVISIONS))
    def commit(self, revised):
        self.session.commit(revised)
        self.model.commit(*self.pending, revised and revised.reason)
        self.pending = None

    @precondition(has_decided)
    @rule()
    def cancel(self):
        self.session.cancel()
        self.pending = None

    @precondition(has_decided)
    @rule(revised=st.sampled_from([Decision.REUSED, Decision.ABSENT]))
    def refused(self, revised):
        with pytest.raises(RunError, match="is not committed"):
            self.session.decide("cond")
        with pytest.raises(RunError, match="only be revised to compute"):
            self.session.commit(revised)

    @precondition(running)
    @rule(how=st.sampled_from(["end", "twice", "exit"]))
    def end(self, how):
        before = self.ended
        if how == "exit":
            self.session.__exit__(None, None, None)
        else:
            self.session.end()
        if how == "twice":
            self.session.end()
        self.pending = None
        assert self.ended == before + 1

    @precondition(idle)
    @rule(streams=st.lists(st.sampled_from(STREAMS), max_size=3), undecided=st.booleans())
    def a_run_left_by_an_exception(self, streams, undecided):
        self.model.begin(0)
        told = []

        def run():
            with self.session as session:
                session.on_end(lambda: told.append(True))
                for name in streams:
                    step = self.model.get(name)["step"]
                    if step >= self.steps:
                        continue
                    expected = self.model.decide([name], step)
                    assert session.decide(name).reason == expected[0][0]
                    session.commit()
                    self.model.commit([name], step, expected, None)
                if undecided and session.remaining("cond"):
                    session.decide("cond")
                raise InterruptedError

        with pytest.raises(InterruptedError):
            run()
        assert told == [True]
        assert not self.session.active

    @precondition(idle)
    @rule()
    def nothing_to_decide_outside_a_run(self):
        with pytest.raises(RunError, match="no run is under way"):
            self.session.decide("cond")
        with pytest.raises(RunError, match="nothing is decided"):
            self.session.commit()
        self.session.cancel()  # does nothing

    @precondition(running)
    @rule()
    def no_second_run_inside_a_run(self):
        with pytest.raises(RunError, match="under way"):
            self.session.begin()

    @invariant()
    def traces_agree(self):
        mine = [
            (e.step, e.stream, e.decision.reason, e.accumulated_ratio, e.accumulated_error, e.skips) for e in self.session.trace
        ]
        assert mine == self.model.trace

    @invariant()
    def positions_agree(self):
        if awaits_a_decision(self):
            for name in STREAMS:
                assert self.session.step(name) == self.model.get(name)["step"]
                assert self.session.remaining(name) == self.steps - self.model.get(name)["step"]


Sessions.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestSessions = Sessions.TestCase


def test_one_failing_callback_keeps_none_of_the_others_from_running():
    freed = []
    session = Session([1.0] * 3, threshold=0.1, max_skips=1, retention=0.0).begin()
    session.on_end(lambda: freed.append("first"))
    session.on_end(lambda: 1 / 0)
    session.on_end(lambda: freed.append("last"))
    with pytest.raises(ZeroDivisionError):
        session.end()
    assert sorted(freed) == ["first", "last"]
    assert not session.active
