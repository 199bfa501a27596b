"""The general prior: a calibration of a model that nobody measured, and what becomes of a plan where it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import (
    ArgumentError,
    Calibration,
    Curve,
    Decision,
    RunError,
    Schedule,
    Session,
    expected_distance,
    expected_errors,
    plan,
    preset,
    presets,
)
from magpolicy.calibration import _gram
from magpolicy.calibration._likeness import LIKENESS
from magpolicy.calibration._prior import DIRECTIONS, Directions, prior_calibration
from magpolicy.planning._trust import ENOUGH, LEAST, START, ForecastTrust

STEPS = 28
LEVELS = [1 - i / STEPS for i in range(STEPS)]
LARGEST_EXPECTED = 3.0
"""No plan from the prior has a larger coefficient, at half to a quarter of the work."""


def whole(calibration: Calibration) -> np.ndarray:
    """The Gram matrix of all streams, one after another."""
    names, n = list(calibration.streams), calibration.steps
    i, j = np.indices((n, n))
    blocks = {(a, a): _gram.inner(calibration.streams[a].gram, i, j) for a in names}
    for (a, b), table in calibration.cross.items():
        blocks[a, b] = _gram.cross_inner(table, i, j)
        blocks[b, a] = blocks[a, b].T
    return np.block([[blocks[a, b] for b in names] for a in names])


levels_of_runs = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=20)


@given(levels_of_runs, st.sampled_from([("single",), ("cond", "uncond"), ("a", "b", "c")]))
def test_it_is_the_gram_matrix_of_some_residuals_whatever_the_levels(levels, streams):
    gram = whole(prior_calibration(None, levels=levels, streams=streams))
    assert np.linalg.eigvalsh(gram).min() > -1e-9
    assert np.diag(gram) == pytest.approx(1.0)


def test_levels_that_are_equal_have_one_residual():
    made = prior_calibration(None, levels=[1.0, 0.6, 0.6, 0.3])
    assert made.hold_error("single", 1, 2) == 0
    assert made.hold_error("single", 1, 3) > 0.1


def test_norms_and_streams_are_the_curves():
    curve = Curve({"cond": [1.0, 1.2, 0.9, 0.8], "uncond": [1.0, 1.1, 0.9, 0.7]})
    made = prior_calibration(curve, levels=curve.levels)
    assert made.streams["cond"].gram[:, 0] == pytest.approx(np.cumprod(curve.ratios["cond"]) ** 2)
    for name, ratios in curve.ratios.items():
        assert made.curve.ratios[name] == pytest.approx(ratios)
    i, j = np.indices((4, 4))
    cross = _gram.cross_inner(made.cross["cond", "uncond"], i, j)
    own = [_gram.inner(made.streams[name].gram, i, j) for name in ("cond", "uncond")]
    assert np.diag(cross) == pytest.approx(LIKENESS * np.sqrt(np.diag(own[0]) * np.diag(own[1])))
    assert made.provenance == {"from": "the general prior", "norms": "published ratios"}
    assert prior_calibration(None, levels=LEVELS).provenance["norms"] == "constant"


def test_levels_a_curve_was_not_measured_at_are_not_known():
    curve = Curve([1.0, 1.1, 1.1], sigmas=[0.8, 0.5, 0.2])
    made = prior_calibration(curve, levels=[1.0, 0.8, 0.5, 0.2, 0.1])
    assert np.isnan(made.streams["single"].gram[:, 0]).tolist() == [True, False, False, False, True]


def test_sigmas_of_other_models_are_read_by_their_ratio_of_noise_to_picture():
    sigmas = [14.6, 5.0, 1.0, 0.25]
    other = prior_calibration(None, levels=[s / (1 + s) for s in sigmas])
    made = prior_calibration(None, levels=sigmas)
    assert made.sigmas == tuple(sigmas)
    assert np.array_equal(made.streams["single"].gram, other.streams["single"].gram, equal_nan=True)


def test_a_run_without_levels_or_streams_is_refused():
    with pytest.raises(ArgumentError, match="at least one stream"):
        prior_calibration(None, levels=LEVELS, streams=())
    with pytest.raises(ArgumentError):
        prior_calibration(None, levels=[])


def test_it_is_a_calibration_as_any_other(tmp_path):
    made = prior_calibration(preset("qwen-image").curve, levels=LEVELS[:-1])
    made.save(tmp_path / "prior.json")
    assert plan(tmp_path / "prior.json", speedup=2) == plan(made, speedup=2)
    assert Calibration.merge([made, made]).window == made.window


# On the published tables.


def rms(truth: Calibration, schedule: Schedule) -> float:
    errors = expected_errors(truth, schedule, sigmas=truth.sigmas)
    skipped = [e for row in errors.values() for e, computes in zip(row, schedule.mask, strict=True) if not computes]
    return float(np.sqrt(np.mean(np.square(skipped))))


def held(schedule: Schedule) -> Schedule:
    return Schedule.from_mask(dict(zip(schedule.streams, schedule.masks, strict=True)))


TURNS = {"as expected": 1.0, "half as quickly": 2.0, "twice as quickly": 0.5}


def table(name: str) -> Curve:
    """A published table at the levels it is read at: what is left of it below may begin or end within a run."""
    curve = preset(name).curve
    return Curve(curve.ratios, sigmas=curve.levels, first_step=curve.first_step)


def run_levels(curve: Curve) -> list[float]:
    levels = curve.levels_for(STEPS)
    return [s for s, inside in zip(levels, curve.covers(levels), strict=True) if inside]


def shares_of_holding(curve: Curve, source: Calibration) -> dict[str, float]:
    """The largest error of plans from ``source`` over holding, on residuals with the curve's norms, by how they turn."""
    found = dict.fromkeys(TURNS, 0.0)
    for part in (2, 3):
        chosen = plan(source, computed=max(1, source.steps // part))
        assert max((abs(c) for row in chosen.coefficients for cs in row for c in cs), default=0) < LARGEST_EXPECTED
        for words, scale in TURNS.items():
            directions = evolve(DIRECTIONS, scale=scale * DIRECTIONS.scale)
            truth = prior_calibration(curve, levels=source.sigmas, directions=directions)
            found[words] = max(found[words], rms(truth, chosen) / rms(truth, held(chosen)))
    return found


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_plan_by_a_published_table_is_never_worse_than_holding_the_same_steps(name):
    curve = table(name)
    found = shares_of_holding(curve, prior_calibration(curve, levels=run_levels(curve)))
    assert max(found.values()) <= 1.05, found


@pytest.mark.parametrize("name", sorted(presets()))
def test_nor_is_one_that_knows_no_norms(name):
    """But where they grow tenfold and the residual turns twice as quickly too."""
    curve = table(name)
    levels, takes_over = run_levels(curve), preset(name).expert_boundary
    switch = None if takes_over is None else largest_fall(curve, levels)
    found = shares_of_holding(curve, prior_calibration(None, levels=levels, streams=curve.streams, expert_step=switch))
    assert found["as expected"] <= 1.05
    # A table that is read between its steps has the change of experts smeared over two.
    assert found["half as quickly"] <= (1.05 if switch is None else 1.1)
    assert found["twice as quickly"] <= 1.3


def largest_fall(curve: Curve, levels: list[float]) -> int:
    """Where a table of two experts shows that the second takes over: the schedule that it was measured on is not known."""
    ratios = np.asarray(curve.resample(sigmas=levels).of(curve.streams[0]))
    return int(np.argmin(ratios[: int(0.8 * len(ratios))]))


@given(st.integers(8, 30), st.integers(2, 29), st.floats(0.3, 3.0))
def test_what_two_experts_have_in_common_is_not_known(steps, at, jump):
    """A plan that knows where the second expert takes over expects less error than one that does not, if nothing is alike."""
    switch = max(2, at % steps)
    ratios = [1.0] * steps
    ratios[switch] = jump
    levels = [1 - step / steps for step in range(steps)]
    truth = prior_calibration(Curve(ratios, sigmas=levels), levels=levels, expert_step=switch)
    knows, not_knowing = (plan(None, steps=steps, speedup=2, expert_step=step) for step in (switch, None))
    assert knows.mask[switch]
    own, other = (expected_distance(truth, chosen, sigmas=levels) for chosen in (knows, not_knowing))
    assert own <= 1.1 * other, (knows.strip, not_knowing.strip)


# Coefficients have a bound, errors a floor.


@given(st.floats(1e-9, 1e-2), st.integers(0, 3), st.sampled_from(["calibrated", "second-order"]), st.integers(2, 6))
def test_residuals_next_to_alike_give_no_coefficient_above_the_bound(apart, seed, forecast, computed):
    rng = np.random.default_rng(seed)
    first, second, third = rng.normal(size=(3, 8, 16))
    path = [first, first + apart * second, *(first + t * second + t * t * third for t in np.linspace(0.4, 1, 8))]
    found = Calibration.from_residuals(path)
    chosen = plan(found, computed=computed, forecast=forecast)
    for c, error in zip(chosen.coefficients[0], chosen.modelled[0], strict=True):
        assert max(map(abs, c), default=0) <= _gram.LARGEST
        weights = _gram.on_residuals(c)
        assert not c or error >= _gram.ROUNDING * math.sqrt(max(sum(w * w for w in weights) - 1, 0)) * 0.99
    for p, j, i in [(0, 1, 2), (0, 1, 9), (1, 2, 9)]:
        c = found.coefficient("single", p, j, i)
        assert abs(c) <= _gram.LARGEST
        assert found.error("single", p, j, i, c) <= found.hold_error("single", j, i) + 1e-6


# Where the prior is wrong.

WIDTH = 512


def white(rng):
    return rng.normal(size=(STEPS, WIDTH))


def jumps(rng):
    jumped = np.cumsum(rng.random(STEPS) < 0.25)
    return rng.normal(size=(STEPS, WIDTH))[jumped] + 1e-3 * rng.normal(size=(STEPS, WIDTH))


def walk(rng):
    return rng.normal(size=(STEPS, WIDTH)).cumsum(axis=0)


def period_two(rng):
    return rng.normal(size=(2, WIDTH))[np.arange(STEPS) % 2] + 0.01 * rng.normal(size=(STEPS, WIDTH))


def period_three(rng):
    return rng.normal(size=(3, WIDTH))[np.arange(STEPS) % 3] + 0.01 * rng.normal(size=(STEPS, WIDTH))


def plateaus(rng):
    moves = np.cumsum(rng.random(STEPS) < 0.2) % 2
    return rng.normal(size=WIDTH) + (0.2 * moves[:, None] * rng.normal(size=WIDTH)).cumsum(axis=0)


def growing(rng):
    path = rng.normal(size=WIDTH) + 0.06 * rng.normal(size=(STEPS, WIDTH)).cumsum(axis=0)
    return np.exp(rng.uniform(-0.1, 0.1) * np.arange(STEPS))[:, None] * path


def smooth(rng):
    s = np.asarray(LEVELS)
    return np.stack([np.ones(STEPS), s, np.sin(4 * s), np.exp(-8 * s)], axis=1) @ rng.normal(size=(4, WIDTH))


def cosine(u, v):
    with np.errstate(invalid="ignore"):
        return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


def run(session: Session, residuals: np.ndarray) -> tuple[float, float, float, float]:
    """Squared relative errors of a run's skips, and of holding the same steps; and both since the run was compared."""
    history: list[int] = []
    errors, holds, told, compared = [], [], False, []
    with session:
        for i in range(STEPS):
            call = session.call(["single"])
            (stream,) = call.streams
            r, size = residuals[i], np.linalg.norm(residuals[i])
            if call.skip:
                weights = _gram.on_residuals(stream.coefficients)
                assert max(map(abs, stream.coefficients), default=0) <= _gram.LARGEST
                made = sum(w * residuals[at] for w, at in zip(weights, history, strict=False))
                errors.append((np.linalg.norm(made - r) / size) ** 2)
                holds.append((np.linalg.norm(residuals[history[0]] - r) / size) ** 2)
                compared.append(told)
                call.commit()
                continue
            found = {}
            if stream.compares_turn and len(history) > 1:
                j, p = history[:2]
                found = {"single": cosine(r - residuals[j], residuals[j] - residuals[p])}
                told |= LEVELS[p] <= START
            call.commit(cosines=found)
            history = [i, *history[:2]]
    late = np.asarray(compared)
    return sum(errors), sum(holds), float(np.asarray(errors)[late].sum()), float(np.asarray(holds)[late].sum())


def unknown_model(computed: int) -> Session:
    return Session(None, sigmas=LEVELS, computed=computed)


@pytest.mark.parametrize("computed", [14, 9], ids=["1/2", "1/3"])
@pytest.mark.parametrize("process", [white, jumps, walk, period_two, period_three, plateaus, growing])
def test_on_residuals_the_prior_is_wrong_of_a_run_is_no_worse_than_holding(process, computed):
    """In the mean over runs, once one has been compared; what was skipped before that is forecast in good faith."""
    session, rng = unknown_model(computed), np.random.default_rng(7)
    errors, holds, late_errors, late_holds = np.sum([run(session, process(rng)) for _ in range(60)], axis=0)
    assert late_errors <= 1.05**2 * late_holds, "since a step has told"
    assert errors <= 1.5**2 * holds, "the skips before that, too"
    assert sum(entry.decision.computes for entry in session.trace) == computed, "not one step more than asked for"


@given(st.integers(0, 10**6), st.sampled_from([14, 9]))
def test_noise_is_held_from_the_first_comparison_on(seed, computed):
    """Each single run, since its cosine is -1/2. One of 0, as of walks, is above the threshold by chance in a few runs."""
    session = unknown_model(computed)
    *_, late_errors, late_holds = run(session, white(np.random.default_rng(seed)))
    assert late_errors <= 1.05**2 * late_holds


@given(st.integers(0, 10**6), st.sampled_from([14, 9]))
def test_smooth_residuals_are_forecast(seed, computed):
    session = unknown_model(computed)
    errors, holds, *_ = run(session, smooth(np.random.default_rng(seed)))
    assert errors < 0.5**2 * holds


def test_skips_hold_where_the_residual_does_not_keep_its_direction():
    fresh = ForecastTrust()
    assert not fresh.holds
    assert fresh.after(LEAST / 2, since=0.0).holds
    assert fresh.after(math.nan, since=0.0).holds
    assert not fresh.after(-0.9, since=0.0).after(0.9, since=0.0).holds
    assert fresh.after(-0.9, since=(1 + START) / 2) == fresh, "a change of the start says nothing of what comes"


def test_as_often_as_the_host_waits_is_counted():
    trust = ForecastTrust()
    for _ in range(ENOUGH):
        assert not trust.settled
        trust = trust.after(0.9, since=0.0)
    assert trust.settled
    assert not trust.after(-0.5, since=0.0).settled
    session, asked = unknown_model(14), 0
    with session:
        for _ in range(STEPS):
            call = session.call(["single"])
            (stream,) = call.streams
            asked += stream.compares_turn and not call.skip
            call.commit(cosines={"single": 0.9} if stream.compares_turn and not call.skip else {})
    assert asked <= ENOUGH + 5, "those at the start that say nothing, and three that do"


def test_at_the_last_step_no_turn_is_compared():
    """Nothing comes after it that could hold; and every comparison makes the host wait."""
    with unknown_model(14) as session:
        found = []
        for _ in range(STEPS):
            call = session.call(["single"])
            found.append(call.streams[0].compares_turn)
            call.commit(Decision.NO_RESIDUAL if call.skip else None)
    assert found[-1] is False
    assert any(found)


def test_a_plan_from_measurements_compares_no_turns():
    measured = Calibration.from_residuals(list(smooth(np.random.default_rng(0))), sigmas=LEVELS)
    for source, more in ((measured, {}), (None, {"forecast": "hold"})):
        with Session(source, sigmas=LEVELS, speedup=2.0, **more) as session:
            for _ in range(STEPS):
                call = session.call(["single"])
                assert not call.streams[0].compares_turn
                call.commit()


def test_a_cosine_of_another_stream_is_refused():
    with unknown_model(14) as session:
        call = session.call(["single"])
        with pytest.raises(RunError, match="'other'"):
            call.commit(cosines={"other": 0.5})


def test_constants_are_the_fitted_ones():
    """What is shipped is what the lab fitted to its three models, rounded."""
    assert Directions() == DIRECTIONS
    turned = DIRECTIONS.turned(np.asarray([1.0, 0.5, 0.05, 0.0]))
    assert turned[0] == 0
    assert np.all(np.diff(turned) > 0)
    assert turned[3] == pytest.approx(2.5 + 14 * 0.065, rel=1e-3)
