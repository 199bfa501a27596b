"""Calibrations: what follows from inner products is what the residuals themselves say."""

import itertools
import math

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, Calibration, StreamMoments, simulate
from magpolicy.calibration._gram import cross_inner, inner
from magpolicy.testing import strategies

LAWS = settings(max_examples=60, deadline=None)


@st.composite
def paths(draw, least=3, most=10, streams=("cond", "uncond")):
    """Residuals of a run: per stream (evaluations, tokens, channels), and their noise levels."""
    count = draw(st.integers(least, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smooth = draw(st.booleans())
    found = {}
    for name in streams:
        rows = random.normal(size=(count, 3, 5))
        found[name] = np.cumsum(rows * 0.2, axis=0) + rows[0] * 3 if smooth else rows
    return found, np.linspace(1, 0.1, count).tolist()


def relative(difference, target):
    return np.linalg.norm(difference) / np.linalg.norm(target)


@LAWS
@given(paths())
def test_errors_and_coefficients_are_those_of_least_squares_on_the_residuals(run):
    rows, sigmas = run
    found = Calibration.from_residuals(rows, sigmas=sigmas)
    for name, r in rows.items():
        for p, j, i in itertools.combinations(range(len(r)), 3):
            assert found.hold_error(name, j, i) == pytest.approx(relative(r[i] - r[j], r[i]), rel=1e-6)
            v, u = (r[j] - r[p]).ravel(), (r[i] - r[j]).ravel()
            best = np.linalg.lstsq(v[:, None], u, rcond=None)[0][0]
            c = found.coefficient(name, p, j, i)
            gain = 1 - (np.linalg.norm(u - best * v) / np.linalg.norm(u)) ** 2
            assert c == pytest.approx(best, rel=1e-6) if gain > 0.0101 else c == 0 or gain > 0.0099
            left = relative(r[i] - r[j] - c * (r[j] - r[p]), r[i])
            assert found.forecast_error(name, p, j, i) == pytest.approx(left, rel=1e-4, abs=1e-7)
            assert found.forecast_error(name, p, j, i) <= found.hold_error(name, j, i) + 1e-12


@LAWS
@given(paths())
def test_ratios_spread_and_cosine_are_means_over_tokens(run):
    rows, sigmas = run
    moments = Calibration.from_residuals(rows, sigmas=sigmas).streams["cond"]
    r = rows["cond"]
    size = np.linalg.norm(r, axis=-1)
    assert moments.ratios == pytest.approx([1, *(size[1:] / size[:-1]).mean(axis=1)])
    assert moments.spread == pytest.approx([0, *(size[1:] / size[:-1]).std(axis=1)], abs=1e-12)
    turned = 1 - ((r[1:] * r[:-1]).sum(-1) / (size[1:] * size[:-1])).mean(axis=1)
    assert moments.cosine == pytest.approx([0, *turned], abs=1e-12)


@LAWS
@given(strategies.calibrations(min_size=3))
def test_what_lies_beyond_the_window_is_not_known(found):
    last = found.steps - 1
    stream = next(iter(found.streams))
    for back in range(1, found.steps):
        assert math.isnan(found.hold_error(stream, last - back, last)) == (back > found.window)
    assert math.isnan(found.hold_error(stream, 0, found.steps))
    assert found.coefficient(stream, 0, 1, found.steps) == 0
    if found.window < last:
        assert found.coefficient(stream, 0, 1, last) == 0


def test_an_evaluation_reuses_itself_without_error_and_an_unknown_stream_reads_the_first():
    found = Calibration.from_residuals([np.ones((2, 3)) * x for x in (1, 2, 4)])
    assert found.hold_error("single", 1, 1) == 0
    assert found.hold_error("other", 0, 1) == pytest.approx(0.5)
    assert found.curve.ratios == {"single": (1.0, 2.0, 2.0)}
    assert found.curve.sigmas == found.sigmas == pytest.approx((1, 2 / 3, 1 / 3))


def test_a_forecast_that_gains_nothing_is_left_out():
    still = Calibration.from_residuals([np.ones((1, 2))] * 4)
    assert still.coefficient("single", 0, 1, 2) == 0
    across = np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]), np.array([[1.0, 2.0]])
    assert Calibration.from_residuals(across).coefficient("single", 0, 1, 2) == 0


def samples(count, seed=0, noise=0.5):
    random = np.random.default_rng(seed)
    path = np.cumsum(random.normal(size=(8, 2, 16)), axis=0)
    return [Calibration.from_residuals(path + noise * random.normal(size=path.shape)) for _ in range(count)]


@LAWS
@given(st.permutations(range(4)), st.integers(1, 3))
def test_merging_does_not_depend_on_order_or_grouping(order, cut):
    every = samples(4)
    whole = Calibration.merge(every)
    shuffled = [every[i] for i in order]
    assert Calibration.merge(shuffled) == whole
    grouped = Calibration.merge([Calibration.merge(shuffled[:cut]), Calibration.merge(shuffled[cut:])])
    assert grouped.merged == whole.merged == 4
    for name, moments in grouped.streams.items():
        assert np.array_equal(moments.samples, whole.streams[name].samples, equal_nan=True)
        assert np.allclose(moments.gram, whole.streams[name].gram, equal_nan=True, rtol=1e-15)
        assert moments.ratios == pytest.approx(whole.streams[name].ratios, rel=1e-14)


def test_merging_keeps_the_mean_and_the_worst_case():
    every = samples(5)
    merged = Calibration.merge(every)
    gram = np.mean([c.streams["single"].gram for c in every], axis=0)
    assert np.allclose(merged.streams["single"].gram, gram, equal_nan=True)
    for p, j, i in itertools.combinations(range(8), 3):
        c = merged.coefficient("single", p, j, i)
        own = [one.error("single", p, j, i, c) for one in every]
        assert merged.error("single", p, j, i, c, worst=True) == pytest.approx(max(own))
        assert min(own) <= merged.error("single", p, j, i, c) <= max(own)
    assert merged.provenance["samples"] == 5
    assert merged.merged == 5


def test_a_forecast_that_one_sample_alone_supports_is_left_out():
    def line(*points):
        return Calibration.from_residuals([np.full((1, 4), x) for x in points])

    onward, back = line(10.0, 13.0, 16.0), line(10.0, 11.0, 10.0)
    assert onward.coefficient("single", 0, 1, 2) == pytest.approx(1)
    assert back.coefficient("single", 0, 1, 2) == pytest.approx(-1)
    mixed = Calibration.merge([onward, back])
    pooled = StreamMoments(*attrs.astuple(mixed.streams["single"], recurse=False)[:4])
    assert attrs.evolve(mixed, streams={"single": pooled}).coefficient("single", 0, 1, 2) == pytest.approx(0.8)
    assert mixed.coefficient("single", 0, 1, 2) == 0
    agreed = Calibration.merge([onward, line(1.0, 2.0, 3.1)])
    assert agreed.coefficient("single", 0, 1, 2) == pytest.approx(1, abs=0.02)


def test_merging_brings_others_to_the_first_ones_levels_and_says_where_it_is_from():
    fine, coarse = smooth(40), smooth(20)
    fine = attrs.evolve(fine, provenance={"model": "m", "seed": 1}, aliases=("a",))
    merged = Calibration.merge([fine, attrs.evolve(coarse, provenance={"model": "m", "seed": 2}, aliases=("b",))])
    assert merged.sigmas == fine.sigmas
    assert merged.provenance == {"model": "m", "seed": [1, 2], "samples": 2}
    assert merged.aliases == ("a", "b")
    with pytest.raises(ArgumentError, match="at least one"):
        Calibration.merge([])


def branches(seed: int, apart: float = 0.3, steps: int = 8):
    """Residuals of two streams that move alike, but for ``apart`` of their own."""
    random = np.random.default_rng(seed)
    common, *own = (np.cumsum(random.normal(size=(steps, 3, 16)), axis=0) for _ in range(3))
    return {name: common + apart * each for name, each in zip(("cond", "uncond"), own, strict=True)}


def alone(residuals, name, **about):
    return attrs.evolve(Calibration.from_residuals({name: residuals[name]}), provenance={"model": "m", **about})


def products(calibration):
    """All inner products, stream by stream."""
    steps = np.indices((calibration.steps,) * 2)
    own = [inner(calibration.streams[name].gram, *steps) for name in ("cond", "uncond")]
    between = cross_inner(calibration.cross["cond", "uncond"], *steps)
    return np.block([[own[0], between], [between.T, own[1]]])


@LAWS
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_branches_measured_one_by_one_merge_into_products_of_some_residuals(seed, apart):
    residuals = branches(seed, apart)
    merged = Calibration.merge([alone(residuals, name) for name in ("cond", "uncond")])
    together = Calibration.from_residuals(residuals)
    assert merged.streams == together.streams
    every = products(merged)
    assert np.linalg.eigvalsh(every).min() > -1e-9 * np.trace(every)
    assert "assumed" in merged.provenance["between_streams"]


def test_branches_that_are_equal_are_taken_to_be_alike_but_for_a_twentieth():
    residuals = branches(1, apart=0)
    merged = Calibration.merge([alone(residuals, name) for name in ("cond", "uncond")])
    within = inner(merged.streams["cond"].gram, *np.indices((8, 8)))
    assert np.allclose(products(merged)[:8, 8:], 0.95 * within)
    schedule = magpolicy.plan(merged, computed=4, guidance=3.0)
    assert schedule.streams == ("cond", "uncond")


def test_branches_of_several_samples_merge_in_any_order():
    first, second = branches(1), branches(2)
    each = [alone(r, name) for r in (first, second) for name in ("cond", "uncond")]
    merged = Calibration.merge(each)
    assert merged.merged == 2
    assert Calibration.merge([each[i] for i in (0, 3, 2, 1)]) == merged


def test_branches_with_products_that_are_not_known_have_none_between():
    residuals = branches(1)
    made = [Calibration.from_residuals({name: residuals[name]}, window=2) for name in residuals]
    assert Calibration.merge(made).cross == {}


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (lambda r: [Calibration.from_residuals(r)], r"streams \['cond'\] and \['cond', 'uncond'\].*no stream in common"),
        (lambda r: [alone(r, "uncond", model="other")], r"calibrations\[1\] is of another model \(model other\).*one model"),
        (lambda r: [alone(r, "cond", model="other")], r"calibrations\[1\] is of another model"),
        (lambda r: [alone(r, "uncond", identity={"config": "b"})], r"calibrations\[1\] is of another model \(config b\)"),
        (
            lambda r: [alone({"uncond": r["uncond"][:5]}, "uncond")],
            r"calibrations\[1\] of \['uncond'\] has other noise levels \(5 from 1 to 0.2\).*resample",
        ),
    ],
)
def test_what_does_not_merge_is_one_clear_error(others, words):
    residuals = branches(1)
    with pytest.raises(ArgumentError, match=f"(?s){words}"):
        Calibration.merge([alone(residuals, "cond", identity={"config": "a"}), *others(residuals)])


def smooth(steps, low=0.02):
    """A path known in closed form, at ``steps`` levels."""
    sigmas = np.linspace(1, low, steps)
    directions = np.random.default_rng(5).normal(size=(4, 24))
    shapes = np.stack([np.ones(steps), sigmas, np.sin(3 * sigmas), np.exp(-2 * sigmas)], axis=1)
    return Calibration.from_residuals([row.reshape(4, 6) for row in shapes @ directions], sigmas=sigmas.tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": [[1.0], [1.0]]}, "ratios has 3"),
        ({"gram": [[1.0, 2.0], [-1.0, 2.0], [1.0, 0.0]]}, r"gram\[1, 0\]=-1"),
        ({"gram": [[1.0, math.inf]] * 3}, "infinity"),
        ({"gram": "abc"}, "gram='abc'"),
        ({"gram": [1.0, 2.0]}, "2 axes"),
        ({"ratios": [1.0, -1.0, 1.0]}, r"ratios\[1\]=-1"),
        ({"spread": [0.0, "x", 0.0]}, r"spread\[1\]='x'"),
        ({"cosine": 3}, "cosine=3"),
        ({"samples": [[[1.0]] * 3]}, "samples has shape"),
    ],
)
def test_moments_that_cannot_be_are_refused_by_name(change, message):
    good = {"gram": [[1.0, 0.9]] * 3, "ratios": [1, 1, 1], "spread": [0, 0, 0], "cosine": [0, 0, 0]}
    StreamMoments(**good)
    with pytest.raises(ArgumentError, match=message):
        StreamMoments(**good | change)


def test_a_calibration_checks_that_its_parts_fit():
    whole = smooth(5)
    with pytest.raises(ArgumentError, match="5 evaluations, sigmas has 4"):
        attrs.evolve(whole, sigmas=(1, 0.8, 0.6, 0.4))
    with pytest.raises(ArgumentError, match=r"streams=.* must map"):
        attrs.evolve(whole, streams={})
    with pytest.raises(ArgumentError, match=r"cross\['a', 'b'\]"):
        attrs.evolve(whole, cross={("a", "b"): np.ones((5, 3))})
    with pytest.raises(ArgumentError, match="all of one shape"):
        Calibration.from_residuals([np.ones((1, 2)), np.ones((2, 2))])
    with pytest.raises(ArgumentError, match="finite"):
        Calibration.from_residuals([np.full((1, 2), np.nan)])
    with pytest.raises(ArgumentError, match="every stream"):
        Calibration.from_residuals({"a": [np.ones((1, 2))], "b": [np.ones((1, 2))] * 2})


@LAWS
@given(strategies.calibrations(min_size=3), st.data())
def test_part_of_a_calibration_knows_what_lies_within_it(found, data):
    first = data.draw(st.integers(0, found.steps - 2))
    stop = data.draw(st.integers(first + 2, found.steps))
    part = found.part(first, stop)
    assert part.sigmas == found.sigmas[first:stop]
    for name in found.streams:
        for j, i in itertools.combinations(range(stop - first), 2):
            np.testing.assert_equal(part.hold_error(name, j, i), found.hold_error(name, j + first, i + first))
    for pair, table in part.cross.items():
        width = table.shape[1] // 2
        for i, d in itertools.product(range(stop - first), range(-width, width + 1)):
            if 0 <= i + d < stop - first:
                np.testing.assert_equal(table[i, width + d], found.cross[pair][i + first, width + d])
            else:
                assert np.isnan(table[i, width + d])


def test_the_rule_reads_a_calibration_as_its_curve():
    found = smooth(12)
    rule = {"threshold": 0.2, "max_skips": 3, "retention": 0.1}
    assert simulate(found, **rule) == simulate(found.curve, **rule)
    with pytest.raises(ArgumentError, match="threshold=None"):
        simulate(found, max_skips=3, retention=0.1)
