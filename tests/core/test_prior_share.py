"""What a run measured, with some of the general prior mixed into it: plans that fit one picture fit the next one less."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import ArgumentError, Calibration, expected_errors, load_calibration, plan
from magpolicy.calibration import _gram
from magpolicy.calibration._prior import prior_calibration, with_prior

STEPS = 12
LEVELS = [1 - i / STEPS for i in range(STEPS)]


def measured(seed=0, share=0.5, window=None, streams=("cond", "uncond"), samples=1):
    """Of residuals that turn at random, a run of one picture."""
    rng = np.random.default_rng(seed)

    def one():
        walks = {name: np.cumsum(rng.normal(size=(STEPS, 6, 4)), axis=0) + 3 * rng.normal(size=(6, 4)) for name in streams}
        return Calibration.from_residuals({k: list(v) for k, v in walks.items()}, sigmas=LEVELS, window=window)

    return evolve(Calibration.merge([one() for _ in range(samples)]), prior_share=share)


def whole(calibration):
    names, (i, j) = list(calibration.streams), np.indices((calibration.steps, calibration.steps))
    blocks = {(a, a): _gram.inner(calibration.streams[a].gram, i, j) for a in names}
    for (a, b), table in calibration.cross.items():
        blocks[a, b] = _gram.cross_inner(table, i, j)
        blocks[b, a] = blocks[a, b].T
    return np.block([[blocks[a, b] for b in names] for a in names])


shares = st.floats(0, 1)


@given(st.integers(0, 20), shares, st.integers(1, 3))
def test_the_mixture_is_the_gram_matrix_of_some_residuals(seed, share, samples):
    gram = whole(with_prior(measured(seed, share, samples=samples)))
    assert np.linalg.eigvalsh(gram).min() > -1e-9 * np.abs(gram).max()


@given(st.integers(0, 20), shares, st.sampled_from([None, 3]))
def test_norms_stay_as_they_were_measured(seed, share, window):
    given_, mixed = measured(seed, share, window), with_prior(measured(seed, share, window))
    for name, moments in given_.streams.items():
        assert mixed.streams[name].gram[:, 0] == pytest.approx(moments.gram[:, 0])
        assert mixed.streams[name].gram.shape == moments.gram.shape
    assert mixed.curve.ratios == given_.curve.ratios
    assert mixed.prior_share == 0


@given(st.integers(0, 20), shares, st.sampled_from([None, 3]), st.integers(1, 9))
def test_a_window_that_reaches_beyond_the_run_changes_nothing(seed, share, window, more):
    # As of a run that covered a part of its schedule: the window was made for all of it.
    given_ = measured(seed, share, window)

    def padded(table, left):
        return np.pad(table, [*[(0, 0)] * (table.ndim - 1), (left, more)], constant_values=np.nan)

    wide = evolve(
        given_,
        streams={
            name: evolve(moments, gram=padded(moments.gram, 0), samples=padded(moments.each, 0))
            for name, moments in given_.streams.items()
        },
        cross={names: padded(table, more) for names, table in given_.cross.items()},
    )
    assert whole(with_prior(wide)) == pytest.approx(whole(with_prior(given_)), nan_ok=True)
    assert with_prior(wide).window == wide.window


def test_all_of_the_prior_leaves_its_directions_alone():
    gram = whole(with_prior(measured(share=1.0, streams=("single",))))
    norms = np.sqrt(np.diag(gram))
    assert gram / np.outer(norms, norms) == pytest.approx(whole(prior_calibration(None, levels=LEVELS)))


def test_none_of_it_changes_nothing():
    given_ = measured(share=0.0)
    assert with_prior(given_) is given_


@given(st.integers(0, 20))
def test_what_is_not_known_stays_not_known(seed):
    table = measured(seed).streams["cond"].gram.copy()
    table[4] = np.nan
    given_ = measured(seed)
    streams = {**given_.streams, "cond": evolve(given_.streams["cond"], gram=table)}
    mixed = with_prior(evolve(given_, streams=streams))
    assert np.isnan(mixed.streams["cond"].gram[4]).all()
    assert plan(mixed, computed=6).mask[4]


def test_plans_and_what_they_expect_are_of_the_mixture():
    given_ = measured()
    chosen = plan(given_, computed=5)
    mixed, plain = plan(with_prior(given_), computed=5), plan(evolve(given_, prior_share=0.0), computed=5)
    assert (chosen, chosen.coefficients) == (mixed, mixed.coefficients)
    assert chosen.coefficients != plain.coefficients
    expected = expected_errors(given_, chosen)
    for row, errors in zip(chosen.modelled, expected.values(), strict=True):
        assert row == pytest.approx(errors)


def test_it_is_read_at_other_levels_first():
    given_, levels = measured(), [1.0, 0.8, 0.55, 0.3, 0.1]
    assert plan(given_, sigmas=levels, computed=3) == plan(with_prior(given_.resample(sigmas=levels)), computed=3)


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_the_share_goes_with_the_file_and_with_what_is_merged(tmp_path, ending):
    pytest.importorskip("safetensors", reason="the files extra is not installed")
    file = tmp_path / f"mine{ending}"
    measured(share=0.25).save(file)
    assert load_calibration(file).prior_share == 0.25
    assert load_calibration(file) == measured(share=0.25)
    assert Calibration.merge([measured(1, 0.25), measured(2, 0.5)]).prior_share == 0.5
    assert measured(share=0.25).part(0, 4).prior_share == 0.25


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ArgumentError, match="prior_share="):
        measured(share=share)
