"""Laws of the rule. They hold under every semantics, unless a test says which it leaves out and why.

Not a law: that a higher threshold skips more. A skip taken late can push a compute to where it hurts more.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Curve, Decision, MagPolicy, Schedule, Session, simulate

NAMES = magpolicy.semantics_names()
CARRYING = {"any", "first"}  # joint rules under which a stream may be carried into a skip against its own test
LAWS = settings(max_examples=100, deadline=None)

ratio = st.sampled_from([0.9, 0.96875, 1.0, 1.0, 1.03125, 1.1]) | st.floats(0.7, 1.4)


@st.composite
def runs(draw, names=NAMES, streams=3, resample=True, least=1):
    """Keyword arguments of simulate()."""
    length = draw(st.integers(least, 24))
    steps = draw(st.none() | st.integers(1, 32)) if resample else None
    row = st.lists(ratio, min_size=length, max_size=length)
    known = ("cond", "uncond", "ref")[: draw(st.integers(1, streams))]
    count = steps or length
    return {
        "source": {name: draw(row) for name in known},
        "steps": steps,
        "threshold": draw(st.sampled_from([0.0, 0.03125, 0.06, 0.12, 0.24, 5.0]) | st.floats(0, 1)),
        "max_skips": draw(st.integers(0, 6)),
        "retention": draw(st.sampled_from([0.0, 0.1, 0.2, 0.25]) | st.floats(0, 1)),
        "start_step": draw(st.sampled_from([0, 0, 0, 1, 4])),
        "end_step": draw(st.none() | st.none() | st.integers(-count, count)),
        "forced": draw(st.sets(st.integers(-count, count - 1), max_size=3)),
        "semantics": draw(st.sampled_from(names)),
    }


def previewed(run, **more):
    run = run | more
    return simulate(run.pop("source"), **run)


def session_of(run):
    run = dict(run)
    return Session(run.pop("source"), **run)


def length_of(run):
    return run["steps"] or len(next(iter(run["source"].values())))


def spans(mask):
    """Lengths of the runs of skips."""
    return [len(part) for part in "".join("c" if computes else "." for computes in mask).split("c") if part]


@LAWS
@given(runs(), st.booleans(), st.data())
def test_nothing_is_skipped_before_a_compute(run, batched, data):
    first = data.draw(st.integers(0, length_of(run) - 1))
    schedule = previewed(run, batched=batched, part=(first, length_of(run)))
    for stream in schedule.streams:
        assert schedule.stream_mask(stream)[0]


@LAWS
@given(runs(), st.booleans())
def test_runs_of_skips_are_at_most_K(run, batched):
    # Left out: batched calls where any or the first stream carries the others. These are reset by a skip, not counted on.
    assume(not (batched and magpolicy.semantics(run["semantics"]).joint in CARRYING))
    schedule = previewed(run, batched=batched)
    for stream in schedule.streams:
        assert max(spans(schedule.stream_mask(stream)), default=0) <= run["max_skips"]


@LAWS
@given(runs(), st.booleans())
def test_forced_steps_and_steps_outside_the_window_compute(run, batched):
    schedule, n = previewed(run, batched=batched), length_of(run)
    end = n - 1 if run["end_step"] is None else run["end_step"] + n if run["end_step"] < 0 else run["end_step"]
    for stream in schedule.streams:
        mask = schedule.stream_mask(stream)
        assert all(mask[step] for step in run["forced"])
        assert all(mask[: run["start_step"]])
        assert all(mask[end + 1 :])


@LAWS
@given(runs(), st.booleans())
def test_the_retained_share_of_the_run_computes(run, batched):
    how = magpolicy.semantics(run["semantics"])
    assume(how.retention != "none")  # Wan2GP has a first step in place of a share
    share = run["retention"] if how.constant_retention is None else how.constant_retention
    schedule = previewed(run, batched=batched)
    least = math.floor(share * length_of(run) - 1e-9)  # they round differently, none below the floor
    for stream in schedule.streams:
        assert all(schedule.stream_mask(stream)[: max(least, 0)])


@LAWS
@given(runs(names=["magpolicy"]), st.booleans())
def test_our_own_retention_is_rounded_to_the_nearest_step(run, batched):
    schedule = previewed(run, batched=batched, forced=(), start_step=0, end_step=None)
    retained = int(run["retention"] * length_of(run) + 0.5)
    for row in schedule.decisions:
        assert [d is Decision.RETENTION for d in row] == [i < retained for i in range(schedule.steps)]


@LAWS
@given(runs(), st.booleans())
def test_the_error_of_a_skipped_step_is_within_the_threshold(run, batched):
    how = magpolicy.semantics(run["semantics"])
    number = np.float32 if how.precision == "float32" else float
    bound = number(run["threshold"])
    schedule = previewed(run, batched=batched)
    by_step = zip(*schedule.modelled, strict=True)
    for decisions, errors in zip(zip(*schedule.decisions, strict=True), by_step, strict=True):
        held = [
            number(e) < bound if how.comparison == "<" else number(e) <= bound
            for d, e in zip(decisions, errors, strict=True)
            if d.skip
        ]
        if batched and how.joint == "any":
            assert not held or any(held)
        elif batched and how.joint == "first":
            assert not held or held[0]
        else:
            assert all(held)


@LAWS
@given(runs(), st.booleans())
def test_computed_steps_carry_no_modelled_error(run, batched):
    schedule = previewed(run, batched=batched)
    for mask, errors in zip(schedule.masks, schedule.modelled, strict=True):
        assert all(error == 0 for computes, error in zip(mask, errors, strict=True) if computes)


@LAWS
@given(runs(streams=2), st.data())
def test_streams_called_by_themselves_do_not_interact(run, data):
    how = magpolicy.semantics(run["semantics"])
    assume(how.transform != "mean")  # mlx-video reads one table for both streams, their mean
    other = [data.draw(ratio) for _ in run["source"]["cond"]]
    schedule = previewed(run, batched=False)
    changed = previewed(run | {"source": run["source"] | {"uncond": other}}, batched=False)
    assert changed.stream_mask("cond") == schedule.stream_mask("cond")
    assert changed.stream_errors("cond") == schedule.stream_errors("cond")


@LAWS
@given(runs(least=2), st.randoms(use_true_random=False))
def test_the_order_in_which_streams_are_called_does_not_matter(run, random):
    schedule = previewed(run, batched=False)
    calls = [name for name in schedule.streams for _ in range(schedule.steps)]
    random.shuffle(calls)  # not even by step
    with session_of(run) as session:
        for name in calls:
            session.decide(name)
            session.commit()
    ran = Schedule.from_trace(session.trace)
    for name in schedule.streams:
        assert ran.stream_mask(name) == schedule.stream_mask(name)


@LAWS
@given(runs())
def test_what_is_simulated_is_what_a_session_runs(run):
    for batched in (False, True):
        schedule = previewed(run, batched=batched)
        with session_of(run) as session:
            for _ in range(schedule.steps):
                for call in [list(schedule.streams)] if batched else schedule.streams:
                    session.decide(call)
                    session.commit()
        ran = Schedule.from_trace(session.trace)
        assert ran == schedule
        assert ran.decisions == schedule.decisions
        skipped = zip(ran.masks, ran.modelled, schedule.modelled, strict=True)
        assert all(a == b for m, mine, its in skipped for c, a, b in zip(m, mine, its, strict=True) if not c)


@LAWS
@given(runs(streams=1, resample=False))
def test_what_is_simulated_is_what_one_policy_decides(run):
    schedule = previewed(run)
    policy = policy_of(run)
    assert tuple(policy.decide() for _ in range(policy.steps)) == schedule.decisions[0]
    with pytest.raises(magpolicy.RunError, match="reset"):
        policy.decide()
    policy.reset()
    assert tuple(policy.decide().computes for _ in range(policy.steps)) == schedule.mask


def policy_of(run):
    settings = {key: value for key, value in run.items() if key not in ("source", "steps")}
    return MagPolicy(run["source"]["cond"], **settings)


@LAWS
@given(runs(streams=1, resample=False), st.data())
def test_saving_and_restoring_anywhere_changes_nothing(run, data):
    policy = policy_of(run)
    cut = data.draw(st.integers(0, policy.steps))
    sat_out = data.draw(st.booleans())
    for _ in range(cut):
        policy.decide()
    state = policy.state_dict()
    for saved in (state, json.loads(json.dumps(state))):
        other = policy_of(run)
        for _ in range(data.draw(st.integers(0, policy.steps), label="other's own past")):
            other.decide()
        other.load_state_dict(saved)
        assert other.state_dict() == state
        assert type(other.accumulated_error) is type(policy.accumulated_error)
        original = policy_of(run)
        original.load_state_dict(state)
        for i in range(cut, policy.steps):
            step = i + 1 if sat_out and i == cut and i + 1 < policy.steps else None
            if other.step == policy.steps:
                break
            assert other.decide(step) is original.decide(step)
            assert other.state_dict() == original.state_dict()
    rest = [policy.decide() for _ in range(cut, policy.steps)]
    assert rest == list(previewed(run).decisions[0][cut:])


@LAWS
@given(runs(streams=1, resample=False))
def test_a_state_that_does_not_fit_changes_nothing(run):
    policy = policy_of(run)
    policy.decide()
    before = policy.state_dict()
    bad = [
        {},
        None,
        5,
        "state",
        before | {"version": 99},
        before | {"steps": policy.steps + 1},
        before | {"step": policy.steps + 1},
        before | {"step": -1},
        before | {"skips": "many"},
        before | {"accumulated_ratio": math.nan},
        before | {"accumulated_error": math.inf},
        before | {"extra": 1},
    ]
    for state in bad:
        with pytest.raises(magpolicy.ArgumentError, match="state"):
            policy.load_state_dict(state)
        assert policy.state_dict() == before


@LAWS
@given(runs(), st.booleans())
def test_relabelling_streams_changes_nothing(run, batched):
    names = dict(zip(run["source"], ("7", "a name", "ω"), strict=False))
    schedule = previewed(run, batched=batched)
    other = previewed(run | {"source": {names[k]: v for k, v in run["source"].items()}}, batched=batched)
    assert other.masks == schedule.masks
    assert other.decisions == schedule.decisions
    assert other.modelled == schedule.modelled


@LAWS
@given(runs())
def test_a_joint_call_skips_for_all_streams_or_for_none(run):
    schedule = previewed(run, batched=True)
    assert len(set(schedule.masks)) == 1


@LAWS
@given(runs())
def test_a_joint_call_never_skips_against_one_streams_own_test(run):
    # Left out: the semantics in which any stream's test, or the first one's, carries the others.
    assume(magpolicy.semantics(run["semantics"]).joint not in CARRYING)
    schedule = previewed(run, batched=True)
    own = [Decision.THRESHOLD, Decision.MAX_SKIPS, Decision.NO_RESIDUAL, Decision.RETENTION, Decision.RATIO_BOUND]
    for decisions in zip(*schedule.decisions, strict=True):
        if Decision.JOINT in decisions:
            assert any(d.computes and d is not Decision.JOINT for d in decisions)
        if any(d in own for d in decisions):
            assert not any(d.skip for d in decisions)


@LAWS
@given(runs(), st.integers(1, 3))
def test_identical_streams_decide_as_one(run, copies):
    # Left out: retention counted over the calls of all streams, in which the second may be let off a step earlier.
    assume(magpolicy.semantics(run["semantics"]).retention != "per_call")
    row = run["source"]["cond"]
    alone = previewed(run | {"source": {"0": row}})
    together = previewed(run | {"source": {str(i): row for i in range(copies)}}, batched=True)
    assert set(together.masks) == set(alone.masks)


@LAWS
@given(runs(), st.booleans(), st.data())
def test_part_of_a_run_keeps_the_positions_of_the_whole(run, batched, data):
    n = length_of(run)
    first = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(first + 1, n))
    part = previewed(run, batched=batched, part=(first, stop))
    assert (part.first_step, part.steps) == (first, stop - first)
    rest = previewed(run, batched=batched, part=(first, n))
    assert tuple(row[: stop - first] for row in rest.decisions) == part.decisions  # where it stops has no say
    for step in {f % n for f in run["forced"]}:
        assert not first <= step < stop or all(mask[step - first] for mask in part.masks)
    closed = {Decision.RETENTION, Decision.WINDOW, Decision.FORCED, Decision.FORBIDDEN, Decision.UNCALIBRATED}
    whole = previewed(run, batched=batched)
    for mine, its in zip(part.decisions, whole.decisions, strict=True):
        assert [d for d in mine if d in closed] == [d for d in its[first:stop] if d in closed]
        assert [i for i, d in enumerate(mine) if d in closed] == [i for i, d in enumerate(its[first:stop]) if d in closed]
    session = session_of(run).begin(first)
    for _ in range(stop - first):
        for call in [list(part.streams)] if batched else part.streams:
            session.decide(call)
            session.commit()
    session.end()
    ran = Schedule.from_trace(session.trace)
    assert (ran, ran.first_step) == (part, first)


@LAWS
@given(runs(resample=False), st.booleans())
def test_settings_that_cannot_skip_compute_everything(run, batched):
    for impossible in ({"max_skips": 0}, {"retention": 1.0}, {"start_step": length_of(run)}):
        how = magpolicy.semantics(run["semantics"])
        if "retention" in impossible and (how.retention == "none" or how.constant_retention is not None):
            continue
        assert previewed(run | impossible, batched=batched and how.joint not in CARRYING).skipped == 0


@LAWS
@given(st.integers(1, 40), st.integers(0, 6), st.sampled_from(NAMES))
def test_a_residual_that_does_not_change_is_reused_K_times_at_a_stretch(steps, max_skips, name):
    how = magpolicy.semantics(name)
    # Left out: a last step, forbidden entry, first counter or table's end of their own interrupt the pattern.
    assume(how.last_step == "rule" and how.forbidden_index is None and not how.initial_skips)
    assume(how.constant_retention is None)
    schedule = simulate([1.0] * steps, threshold=0.1, max_skips=max_skips, retention=0, semantics=how)
    assert schedule.mask == tuple(i % (max_skips + 1) == 0 for i in range(steps))


@LAWS
@given(runs(names=["magpolicy"], streams=1), st.integers(1, 24))
def test_our_own_reading_of_a_table_is_the_resampled_curve(run, steps):
    curve = Curve(run["source"]["cond"])
    assume(steps <= len(curve))  # past the last calibrated level it computes instead
    run = run | {"steps": None, "forced": (), "end_step": None}
    resampled = previewed(run | {"source": curve.resample(steps=steps)})
    assert previewed(run | {"source": curve, "steps": steps}) == resampled


@LAWS
@given(runs(), st.lists(st.floats(0, 1), min_size=1, max_size=3), st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_a_sweep_is_a_table_of_simulations(run, thresholds, skips):
    shared = {key: value for key, value in run.items() if key not in ("source", "threshold", "max_skips", "retention")}
    table = magpolicy.sweep(run["source"], thresholds=thresholds, max_skips=skips, retentions=[0.0, 0.3], **shared)
    assert len(table) == 2 * len(thresholds) * len(skips)
    for row in table:
        settings = {"threshold": row.threshold, "max_skips": row.max_skips, "retention": row.retention}
        assert previewed(run | settings) == row.schedule
        assert (row.computed, row.error, row.speedup) == (
            row.schedule.computed,
            row.schedule.error,
            row.schedule.speedup,
        )
    front = table.front()
    assert front
    for row in table:  # nothing beats the front, and something on it is at least as good as every row
        assert not any(row.computed <= f.computed and row.error < f.error for f in front if row.computed == f.computed)
        assert any(f.computed <= row.computed and f.error <= row.error for f in front)
    assert [f.computed for f in front] == sorted({f.computed for f in front})
    assert [f.error for f in front] == sorted({f.error for f in front}, reverse=True)


@pytest.mark.parametrize("name", ["comfyui/wan", "wan2gp/wan"])
def test_a_stream_carried_into_a_skip_against_its_own_test_starts_afresh(name):
    schedule = simulate(
        {"cond": [1.0, 1.0, 1.0, 1.0], "uncond": [1.0, 1.5, 1.25, 1.0]},
        threshold=0.1,
        max_skips=5,
        retention=0,
        semantics=name,
        batched=True,
    )
    assert schedule.masks == ((True, False, False, False),) * 2
    assert schedule.stream_errors("uncond") == (0, 0.5, 0.25, 0)  # not 0.5, 1.375, ...: each refusal was a fresh start


@LAWS
@given(runs(streams=2, least=2), st.integers(1, 3))
def test_no_stream_is_carried_into_a_skip_before_it_has_computed(run, late):
    steps = length_of(run)
    assume(steps > late)
    with session_of(run) as session:
        for step in range(steps):
            session.decide(["cond", "late"] if step >= late else "cond", step=step)
            session.commit()
    seen = set()
    for entry in session.trace:
        assert entry.decision.computes or entry.stream in seen
        seen.add(entry.stream)
