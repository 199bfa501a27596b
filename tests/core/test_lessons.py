"""What is learned from the runs that are made: a calibration completed from what was computed, and which run is worth more."""

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, Calibration
from magpolicy.adapter import MeasuredPart, can_teach, joined, lesson_of, resolve, should_compute_all
from magpolicy.calibration._completed import completed, read_at
from magpolicy.calibration._lessons import Taught
from magpolicy.calibration._prior import prior_calibration, with_prior

LAWS = settings(deadline=None)  # a plan or two in each example: on a busy machine the default's 0.2 s are over
STEPS = 12
LEVELS = tuple(1 - i / STEPS for i in range(STEPS))


def residuals(streams=("cond", "uncond"), steps=STEPS, size=400, seed=0):
    """Smooth paths with something in common: (stream, step) -> (size,)."""
    rng = np.random.default_rng(seed)
    shapes = rng.standard_normal((4, size))
    turn = np.linspace(0, 2, steps)
    common = np.stack([np.cos(turn), np.sin(turn), turn, np.ones(steps)], axis=1) @ shapes
    own = {name: common + 0.2 * np.outer(np.cos(turn + i), rng.standard_normal(size)) for i, name in enumerate(streams)}
    return {(name, step): own[name][step] for step in range(steps) for name in streams}


def part(every, steps):
    seen = {place: r for place, r in every.items() if place[1] in steps}
    rows = np.stack(list(seen.values()))
    return MeasuredPart(tuple(seen), rows @ rows.T / rows.shape[1])


def lesson(steps=range(STEPS), *, seed=0, levels=LEVELS, whole=True, **options):
    every = residuals(seed=seed, steps=len(levels), **options)
    return lesson_of(part(every, steps), levels, whole=whole, evaluations=len(every))


def dense(calibration, stream):
    gram = calibration.streams[stream].gram
    i, j = np.indices((len(gram), len(gram)))
    return gram[np.maximum(i, j), np.abs(i - j)]


def test_a_run_in_full_is_measured_as_a_calibration_measures_it():
    every = residuals()
    found = completed(part(every, range(STEPS)), LEVELS)
    rows = {name: [every[name, step][None] for step in range(STEPS)] for name in ("cond", "uncond")}
    expected = Calibration.from_residuals(rows, sigmas=LEVELS)
    for name in expected.streams:
        np.testing.assert_allclose(found.streams[name].gram, expected.streams[name].gram, rtol=1e-9)
        np.testing.assert_allclose(found.streams[name].ratios, expected.streams[name].ratios, rtol=1e-9)
        np.testing.assert_allclose(found.streams[name].cosine, expected.streams[name].cosine, atol=1e-9)
    np.testing.assert_allclose(found.cross["cond", "uncond"], expected.cross["cond", "uncond"], rtol=1e-9)


@LAWS
@given(st.sets(st.integers(0, STEPS - 1), min_size=1), st.integers(0, 5), st.lists(st.integers(1, STEPS - 1), max_size=2))
def test_whatever_was_computed_is_kept_and_the_rest_is_the_gram_matrix_of_some_path(steps, seed, experts):
    every = residuals(seed=seed)
    measured = part(every, steps)
    found = completed(measured, LEVELS, expert_steps=experts)
    for a, (stream, i) in enumerate(measured.places):
        for b, (other, j) in enumerate(measured.places):
            if stream == other and j <= i:
                assert found.streams[stream].gram[i, i - j] == pytest.approx(measured.gram[a, b])
    whole = [dense(found, name) for name in ("cond", "uncond")]
    table = found.cross["cond", "uncond"]
    i, j = np.indices((STEPS, STEPS))
    across = table[i, STEPS - 1 + j - i]
    values = np.linalg.eigvalsh(np.block([[whole[0], across], [across.T, whole[1]]]))
    assert values.min() > -1e-6 * values.max()
    schedule = magpolicy.plan(found, computed=5)
    assert all(np.isfinite(e) for row in schedule.modelled for e in row)


def test_a_stream_that_took_part_in_a_few_steps_is_known_there_and_expected_elsewhere():
    every = {place: r for place, r in residuals().items() if place[0] == "cond" or 3 <= place[1] < 6}
    found = completed(part(every, range(STEPS)), LEVELS)
    assert np.isfinite(dense(found, "uncond")).all()
    assert found.streams["uncond"].gram[4, 0] == pytest.approx(np.mean(every["uncond", 4] ** 2))


def test_between_two_experts_nothing_is_inferred():
    measured = part(residuals(("cond",)), (0, 1, 2, 9, 10, 11))
    found = completed(measured, LEVELS, expert_steps=[6])
    gram = dense(found, "cond")
    size = np.sqrt(np.diag(gram))
    one = completed(measured, LEVELS)
    near, smooth = gram[5, 6] / (size[5] * size[6]), dense(one, "cond")[5, 6]
    assert near < smooth / np.prod(np.sqrt(np.diag(dense(one, "cond")))[5:7])


@pytest.mark.parametrize(
    ("places", "gram"),
    [
        ((), np.zeros((0, 0))),
        ((("a", 0), ("a", 1)), [[1.0, np.nan], [np.nan, 1.0]]),
        ((("a", 0), ("a", 1)), [[1.0, 0.0], [0.0, 0.0]]),
        ((("a", 0),), np.eye(2)),
    ],
)
def test_residuals_that_teach_nothing_are_refused(places, gram):
    with pytest.raises(ArgumentError, match="gram"):
        MeasuredPart(places, np.asarray(gram))


def test_a_residual_of_a_step_that_the_run_does_not_have_is_refused():
    with pytest.raises(ArgumentError, match=r"levels has 3 values, a residual is of step 11"):
        completed(part(residuals(), range(STEPS)), LEVELS[:3])


def test_a_run_in_full_is_worth_more_than_any_that_skipped():
    skipped, full = lesson((0, 1, 4, 7, 11)), lesson(seed=1)
    assert joined(None, skipped) is skipped
    assert joined(skipped, full) is full
    assert joined(full, skipped) is None
    assert not can_teach(full, whole=True, full=False, levels=LEVELS)
    assert can_teach(skipped, whole=True, full=True, levels=LEVELS)


def test_a_longer_run_in_full_takes_the_place_of_a_shorter_one():
    short, more = lesson(levels=(1.0, 0.75, 0.5, 0.25), steps=range(4)), lesson()
    assert can_teach(short, whole=True, full=True, levels=LEVELS, steps=STEPS)
    assert not can_teach(more, whole=True, full=True, levels=short.sigmas, steps=4)
    assert not can_teach(more, whole=True, full=True, levels=LEVELS, steps=STEPS)
    assert joined(short, more) is more
    assert joined(more, short) is None


def test_a_short_run_in_full_does_not_outweigh_a_long_one_that_skips():
    short, skipped = lesson(levels=(1.0, 0.75, 0.5, 0.25), steps=range(4)), lesson((0, 1, 3, 4, 6, 7, 8, 9, 11))
    assert joined(short, skipped) is skipped
    assert joined(skipped, short) is None
    assert can_teach(short, whole=True, full=False, levels=LEVELS, steps=STEPS)
    assert not can_teach(skipped, whole=True, full=True, levels=short.sigmas, steps=4)


@LAWS
@given(st.integers(4, 60), st.integers(1, 60), st.booleans(), st.booleans(), st.booleans())
def test_what_cannot_teach_is_never_worth_more(steps, computed, whole, full, known_full):
    known = lesson(range(STEPS)) if known_full else lesson((0, 3, 6, 9))
    taught = Taught(whole=whole, full=full, computed=steps if full else min(computed, steps))
    if not can_teach(known, whole=whole, full=full, levels=None, steps=steps):
        assert taught.worth <= Taught.of(known).worth


@pytest.mark.parametrize(
    ("known", "steps", "expected"),
    [
        (None, 4, True),
        (None, 3, False),
        (4, 7, False),
        (4, 8, True),
        (STEPS, STEPS, False),
        (None, None, True),
        (4, None, False),
    ],
)
def test_a_first_run_computes_all_where_nothing_or_half_as_much_at_most_is_known(known, steps, expected):
    made = None if known is None else lesson(levels=tuple(1 - i / known for i in range(known)), steps=range(known))
    assert should_compute_all(made, whole=True, steps=steps) is expected
    assert made is None or not should_compute_all(made, whole=False, steps=steps)


def test_a_first_run_computes_all_where_only_runs_that_skipped_or_a_part_are_known():
    for known in (lesson((0, 3, 6, 9)), lesson(range(6, 12), whole=False)):
        assert should_compute_all(known, whole=True, steps=STEPS)
        assert should_compute_all(known, whole=True, steps=None)


def test_a_run_of_the_whole_schedule_is_worth_more_than_one_of_a_part():
    part_of_it, whole = lesson(range(6, 12), whole=False), lesson((0, 3, 6, 9))
    assert Taught.of(part_of_it).full is False  # evaluations before it began are none that were computed
    assert joined(part_of_it, whole) is whole
    assert joined(whole, part_of_it) is None
    assert not can_teach(whole, whole=False, full=True, levels=LEVELS)


def test_runs_that_skipped_are_averaged_up_to_four():
    known = None
    for seed, steps in enumerate([(0, 1, 4, 7, 11), (0, 2, 5, 8), (0, 1, 6), (0, 3, 9, 10)]):
        assert can_teach(known, whole=True, full=False, levels=LEVELS)
        known = joined(known, lesson(steps, seed=seed))
    assert Taught.of(known) == Taught(whole=True, full=False, computed=10, runs=4)
    assert known.merged == 4
    assert not can_teach(known, whole=True, full=False, levels=LEVELS)
    assert joined(known, lesson((0, 5), seed=9)) is None


def test_of_runs_at_other_levels_the_one_stays_that_computed_more():
    short = lesson((0, 1, 4, 7, 11))
    longer = tuple(1 - i / 20 for i in range(20))
    more = lesson((0, 1, 3, 5, 8, 11, 14, 19), levels=longer)
    assert joined(short, more) is more
    assert joined(more, short) is None


def test_a_short_run_teaches_nothing():
    assert not can_teach(None, whole=True, full=True, levels=None, steps=3)
    assert can_teach(None, whole=True, full=True, levels=None, steps=4)


@LAWS
@given(
    st.sets(st.integers(0, STEPS - 1), min_size=3),
    st.lists(st.floats(0.01, 1.0), min_size=4, max_size=30, unique=True).map(lambda v: sorted(v, reverse=True)),
)
def test_what_is_known_is_read_at_any_levels_as_the_gram_matrix_of_some_path(steps, levels):
    known = lesson(steps)
    found = read_at(known, levels)
    assert found.sigmas == tuple(levels)
    whole = [dense(found, name) for name in ("cond", "uncond")]
    i, j = np.indices((len(levels), len(levels)))
    across = found.cross["cond", "uncond"][i, len(levels) - 1 + j - i]
    values = np.linalg.eigvalsh(np.block([[whole[0], across], [across.T, whole[1]]]))
    assert values.min() > -1e-6 * values.max()
    for place, level in enumerate(levels):
        if level in LEVELS:
            expected = known.streams["cond"].gram[LEVELS.index(level), 0]
            assert found.streams["cond"].gram[place, 0] == pytest.approx(expected, rel=1e-3)


def test_what_is_known_is_read_at_its_own_levels_as_it_is():
    known = lesson((0, 1, 4, 7, 11))
    assert read_at(known, LEVELS) is known


def test_runs_whose_levels_no_run_had_are_planned_too():
    config = resolve(None, computed=8).taught_by(lesson((0, 1, 4, 7, 11)))
    for sigmas in [tuple(1 - i / 28 for i in range(28)), tuple(0.3 - i / 100 for i in range(28))]:
        schedule = config.prepare(28, sigmas).schedule
        assert schedule.computed == 8
    assert config.prepare(20, None).schedule.computed == 8
    assert config.prepare(20, None).schedule.sigmas == config.curve.levels_for(20), "on the schedule of the run that taught"
    assert config.prepare(28, sigmas).schedule.sigmas == sigmas
    assert config.prepare(28, sigmas).request.source.sigmas == sigmas, "what is known is read there, and not resampled"
    with pytest.raises(ArgumentError, match=r"steps=None: how long is the run\? try handle.run\(steps=28\)"):
        config.length(None, None)
    assert config.length(7, None) == (7, None)
    assert config.length(None, LEVELS) == (STEPS, LEVELS)


def test_what_nobody_taught_is_no_lesson():
    assert Taught.of(None) is None
    assert Taught.of(prior_calibration(None, levels=LEVELS)) is None
    assert Taught.of(Calibration(sigmas=LEVELS, streams=lesson().streams, provenance={"taught": {"runs": 1, "odd": 2}})) is None


@LAWS
@given(st.floats(0.0, 1.0))
def test_a_share_of_the_prior_keeps_the_norms(share):
    known = lesson((0, 1, 4, 7, 11))
    mixed = with_prior(evolve(known, prior_share=share))
    for name, moments in mixed.streams.items():
        np.testing.assert_allclose(moments.gram[:, 0], known.streams[name].gram[:, 0])
    assert np.isfinite(mixed.cross["cond", "uncond"]).sum() == np.isfinite(known.cross["cond", "uncond"]).sum()


def test_a_share_of_the_prior_fits_narrow_windows_and_several_samples():
    merged = Calibration.merge([lesson(seed=0), lesson(seed=1)])
    narrow = Calibration.from_residuals({n: [residuals()[n, i][None] for i in range(STEPS)] for n in ("cond",)}, window=3)
    for calibration in (merged, narrow):
        mixed = with_prior(evolve(calibration, prior_share=0.03))
        assert mixed.window == calibration.window
        assert mixed.merged == calibration.merged


def test_a_plan_goes_by_what_was_learned_and_says_so():
    plain = resolve(None, speedup=2.0)
    assert plain.learns
    assert "learn='first'" in plain.while_learning().advice
    skipped = plain.taught_by(lesson((0, 1, 4, 7, 11)))
    assert skipped.source == "a plan from what a run that skipped steps taught"
    assert skipped.advice == "one run with learn='first' computes every step, and teaches more"
    full = skipped.taught_by(lesson())
    assert (full.source, full.advice) == ("a plan from what a run in full taught", "")
    own = resolve(Calibration(sigmas=LEVELS, streams=lesson().streams), speedup=2.0)
    assert not own.learns
    assert own.taught_by(lesson()) is own
    assert not resolve([1.0] * 6, threshold=0.1, max_skips=2, retention=0.2).learns
