"""What is counted is what the run's trace and report say, in both libraries, whoever makes the run."""

import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Decision, PluginWarning, Schedule, Session
from magpolicy_metrics import Metrics

masks = st.lists(st.booleans(), max_size=12).map(lambda rest: [True, *rest])


def run(session, streams=("cond",)):
    with session:
        for _ in range(session.steps):
            session.decide(list(streams))
            session.commit()
    return session.trace


def reasons(counted):
    return {reason: n for (reason,), n in counted.by("magpolicy_evaluations_total", "reason").items()}


@given(st.lists(masks, min_size=1, max_size=4), st.sampled_from([("single",), ("cond", "uncond")]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_evaluations_are_those_of_the_traces(start, runs, streams):
    metrics, counted = start()
    with metrics:
        traces = [run(Session(Schedule.from_mask(mask)), streams) for mask in runs]
        entries = [entry for trace in traces for entry in trace]
        assert reasons(counted) == Counter(entry.decision.reason for entry in entries)
        assert counted.of("magpolicy_evaluations_total", decision="skipped") == sum(e.decision.skip for e in entries)
        assert counted.of("magpolicy_evaluations_total", decision="computed") == sum(e.decision.computes for e in entries)
        assert counted.of("magpolicy_runs_total") == len(runs)
        assert counted.of("magpolicy_replans_total") == 0


def test_a_run_left_early_counts_what_it_did(start):
    _, counted = start()
    session = Session(Schedule.from_mask([1, 0, 1, 0]))

    def interrupted():
        with session:
            session.decide()
            session.commit()
            session.decide()
            session.commit(Decision.NO_RESIDUAL)
            session.decide()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reasons(counted) == {"scheduled": 1, "no_residual": 1}
    assert counted.of("magpolicy_runs_total") == 1


def test_replans_are_counted_by_what_became_of_the_rest(start):
    _, counted = start()
    plan = magpolicy.plan("flux", steps=20, speedup=2.0)
    session = Session(plan, safeguard=True)
    with session:
        for _ in range(20):
            call = session.call(["single"])
            check = call.streams[0].check
            call.commit(errors={"single": 10 * check[1] + 1} if check is not None and not session.replans else None)
    (replan,) = session.replans
    assert counted.by("magpolicy_replans_total", "outcome") == {(replan.outcome,): 1}


def test_threads_lose_no_count(start):
    _, counted = start()
    threads, runs = 8, 25
    go = threading.Barrier(threads)

    def work():
        go.wait()
        for _ in range(runs):
            run(Session(Schedule.from_mask([1, 0, 0, 1, 0])), ("cond", "uncond"))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counted.of("magpolicy_runs_total") == threads * runs
    assert reasons(counted) == {"scheduled": 4 * threads * runs, "reused": 6 * threads * runs}


class Call:
    """A call on a device that takes its time. A fake: what is shown is that nobody asks for its time before it is done."""

    def __init__(self, skipped=False):
        self.skipped, self.done = skipped, False

    @property
    def seconds(self):
        assert self.done, "this waits for the device"
        return 0.25


def run_on_a_device(*calls):
    session = Session(Schedule.from_mask([1]))
    with session:
        session.report_by(lambda: SimpleNamespace(trace=session.trace, model="Net", calls=calls))
        session.decide()
        session.commit()


def test_times_are_added_once_the_device_has_them(start):
    _, counted = start()
    first, second = Call(), Call(skipped=True)
    run_on_a_device(first, second)
    assert counted.of("magpolicy_evaluations_total", model="Net") == 1
    assert counted.of("magpolicy_call_duration_seconds_count") == 0
    first.done = second.done = True
    run_on_a_device()
    assert counted.by("magpolicy_call_duration_seconds_count", "decision", "model") == {
        ("computed", "Net"): 1,
        ("skipped", "Net"): 1,
    }
    assert counted.of("magpolicy_call_duration_seconds_sum") == 0.5


def test_a_time_that_cannot_be_read_is_given_up(start):
    _, counted = start()

    class Lost(Call):
        done = property(lambda self: 1 / 0, lambda self, _: None)

    fine = Call()
    fine.done = True
    with pytest.warns(PluginWarning, match=r"failed in on_run_end: ZeroDivisionError"):
        run_on_a_device(Lost(), fine)
    run_on_a_device()
    assert counted.of("magpolicy_call_duration_seconds_count") == 1
    assert counted.of("magpolicy_runs_total") == 2


def test_a_report_that_fails_breaks_neither_the_run_nor_its_counts(start):
    _, counted = start()
    session = Session(Schedule.from_mask([1, 0]))
    session.report_by(lambda: 1 / 0)
    with pytest.warns(PluginWarning, match="report_by: ZeroDivisionError"):
        run(session)
    assert reasons(counted) == {"scheduled": 1, "reused": 1}


def test_no_report_is_made_for_nobody():
    session = Session(Schedule.from_mask([1]))
    with session:
        session.report_by(pytest.fail)
        session.decide()
        session.commit()


def test_metrics_that_fail_do_not_break_a_run():
    class Full:
        def add_run(self, model):
            raise OSError("disk full")

        def close(self):
            pass

    metrics = Metrics(Full(), ("mine", None))
    magpolicy.manager().register(metrics)
    with metrics, pytest.warns(PluginWarning, match="failed in on_run_end: OSError: disk full"):
        trace = run(Session(Schedule.from_mask([1, 0])))
    assert [entry.decision.skip for entry in trace] == [False, True]


def test_closed_metrics_count_no_more(start):
    metrics, counted = start()
    run(Session(Schedule.from_mask([1, 0])))
    before = counted.of("magpolicy_runs_total")
    metrics.close()
    metrics.close()
    run(Session(Schedule.from_mask([1, 0])))
    assert before == 1
    assert counted.of("magpolicy_runs_total") in (1, 0)  # OpenTelemetry keeps its counters, Prometheus' registry is as before
