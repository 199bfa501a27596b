"""What a calibration run measures is what a brute-force pass over recorded residuals gives."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import ArgumentError, RunError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
np = pytest.importorskip("numpy")

from magpolicy_torch import Moments  # noqa: E402
from magpolicy_torch.residuals import _moments  # noqa: E402

SIGMAS = [1.0, 0.8, 0.6, 0.4, 0.2]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run_of(steps, shape, *, seed=0, dtype=torch.float32):
    """Residuals that change slowly, as a model's do."""
    base, drift = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    return [(base + 0.3 * i * drift + 0.1 * draw(*shape, seed=seed + 2 + i)).to(dtype) for i in range(steps)]


def inner(a, b):
    return float((a.double() * b.double()).mean())


def brute(residuals, window, channel_dim=-1):
    """The definitions, written down in float64."""
    count = len(residuals)
    gram = np.full((count, window + 1), np.nan)
    for i, k in itertools.product(range(count), range(window + 1)):
        if k <= i:
            gram[i, k] = inner(residuals[i], residuals[i - k])
    tokens = [r.double().movedim(channel_dim, -1).flatten(0, -2) for r in residuals]
    growth = [b.norm(dim=-1) / a.norm(dim=-1) for a, b in itertools.pairwise(tokens)]
    cosine = [torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in itertools.pairwise(tokens)]
    return (
        gram,
        [1.0, *(float(g.mean()) for g in growth)],
        [0.0, *(float(g.std(correction=0)) for g in growth)],
        [0.0, *(float((1 - c).mean()) for c in cosine)],
    )


def same(moments, residuals, window, channel_dim=-1, rtol=1e-6):
    gram, ratios, spread, cosine = brute(residuals, window, channel_dim)
    np.testing.assert_allclose(moments.gram, gram, rtol=rtol)
    np.testing.assert_allclose(moments.ratios, ratios, rtol=10 * rtol)
    np.testing.assert_allclose(moments.spread, spread, rtol=1e-3, atol=10 * rtol)
    np.testing.assert_allclose(moments.cosine, cosine, rtol=1e-3, atol=10 * rtol)


@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 6, 8), -1), ((2, 3, 4, 4), 1), ((1, 3, 2, 4, 4), 1), ((5, 8), -1)])
def test_moments_are_those_of_brute_force(window, shape, channel_dim):
    residuals = run_of(5, shape)
    moments = Moments(window=window)
    for residual in residuals:
        moments.add("single", residual, channel_dim)
    found = moments.calibration(SIGMAS)
    assert found.sigmas == tuple(SIGMAS)
    same(found.streams["single"], residuals, window, channel_dim)
    assert moments.curve(SIGMAS).ratios["single"] == found.streams["single"].ratios


def test_tokens_may_grow_very_differently():
    """Their growth then spreads further than its mean."""
    sizes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 0.5, 20.0, 2.0, 1.0], [30.0, 0.1, 20.0, 1.0, 1.0]])
    residuals = [draw(1, 5, 8, seed=seed) * size[:, None] for seed, size in enumerate(sizes)]
    moments = Moments(window=2)
    for residual in residuals:
        moments.add("single", residual)
    found = moments.calibration(SIGMAS[:3]).streams["single"]
    assert found.spread[1] > found.ratios[1]
    same(found, residuals, 2)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(2, 7),
    window=st.integers(1, 8),
    tokens=st.integers(1, 9),
    channels=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_moments_of_any_run(steps, window, tokens, channels, dtype, seed):
    residuals = run_of(steps, (1, tokens, channels), seed=seed, dtype=dtype)
    moments = Moments(window=window)
    for residual in residuals:
        moments.add("single", residual)
    gram, ratios, *_ = brute(residuals, window)
    found = moments.calibration(np.linspace(1, 0.1, steps)).streams["single"]
    # An inner product near 0 is known to the rounding of its summands, not of itself.
    np.testing.assert_allclose(found.gram, gram, rtol=1e-5, atol=1e-6 * np.nanmax(gram))
    np.testing.assert_allclose(found.ratios, ratios, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_16_bit_residuals_are_not_rounded_to_16_bit(dtype):
    """The hold error of residuals that differ by little: in 16 bit the squares could not tell them apart."""
    first = draw(1, 500, 64).to(dtype)
    second = (first.double() * 1.01).to(dtype)
    moments = Moments(window=1)
    moments.add("single", first)
    moments.add("single", second)
    true = float((second.double() - first.double()).norm() / second.double().norm())
    assert moments.calibration([1.0, 0.5]).hold_error("single", 0, 1) == pytest.approx(true, rel=1e-3)
    naive = [float((a * b).mean()) for a, b in ((second, second), (second, first), (first, first))]
    assert abs(max(naive[0] - 2 * naive[1] + naive[2], 0) ** 0.5 / naive[0] ** 0.5 / true - 1) > 0.1


def test_streams_and_the_products_between_them():
    window, cond, uncond = 2, run_of(5, (1, 6, 8)), run_of(5, (1, 6, 8), seed=50)
    moments = Moments(window=window)
    for a, b in zip(cond, uncond, strict=True):
        moments.add("cond", a)
        moments.add("uncond", b)
    found = moments.calibration(SIGMAS)
    same(found.streams["cond"], cond, window)
    same(found.streams["uncond"], uncond, window)
    expected = np.full((5, 2 * window + 1), np.nan)
    for i, d in itertools.product(range(5), range(-window, window + 1)):
        if 0 <= i + d < 5:
            expected[i, window + d] = inner(cond[i], uncond[i + d])
    np.testing.assert_allclose(found.cross["cond", "uncond"], expected, rtol=1e-5, atol=1e-7)
    assert list(found.cross) == [("cond", "uncond")]


def test_every_pair_of_streams_has_its_products():
    moments = Moments(window=2)
    rows = {name: run_of(4, (1, 6, 8), seed=seed) for seed, name in enumerate("abc")}
    for step in range(4):
        for name, residuals in rows.items():
            moments.add(name, residuals[step])
    found = moments.calibration(SIGMAS[:4])
    assert sorted(found.cross) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (first, second), table in found.cross.items():
        for i, d in itertools.product(range(4), range(-2, 3)):
            if 0 <= i + d < 4:
                assert table[i, 2 + d] == pytest.approx(inner(rows[first][i], rows[second][i + d]), rel=1e-4, abs=1e-6)


def test_a_stream_that_sat_steps_out_is_left_out_and_said_so():
    residuals = run_of(5, (1, 6, 8))
    moments = Moments(window=2)
    for step, residual in enumerate(residuals):
        moments.add("cond", residual, step=step)
        if step != 2:
            moments.add("uncond", 2 * residual, step=step)
    found = moments.calibration(SIGMAS)
    assert list(found.streams) == ["cond"]
    assert found.provenance["streams_left_out"] == ["uncond"]
    assert found.cross == {}
    same(found.streams["cond"], residuals, 2)


def test_some_of_the_tokens_are_chosen_once():
    """Chosen once: every evaluation and every stream looks at the same tokens, or their products would be of nothing."""
    residuals = run_of(5, (2, 50, 8))
    moments = Moments(window=3, tokens=20)
    for residual in residuals:
        moments.add("cond", residual)
        moments.add("uncond", 2 * residual)
    (chosen,) = moments._chosen.values()
    assert len(set(chosen.tolist())) == 20
    found = moments.calibration(SIGMAS)
    same(found.streams["cond"], [r.flatten(0, 1)[chosen] for r in residuals], 3)
    np.testing.assert_allclose(found.cross["cond", "uncond"][:, 3], 2 * found.streams["cond"].gram[:, 0], rtol=1e-5)
    assert (found.provenance["samples"], found.provenance["tokens"], found.provenance["tokens_of"]) == (1, 20, 100)
    assert moments.nbytes == 2 * 20 * (3 + 1) * 8 * 4


class Other:
    """A group of two ranks, of which the other measured ``numbers``."""

    size = 2

    def __init__(self, numbers=0.0):
        self.numbers, self.told = numbers, []

    def ends_alike(self, digest):
        self.told.append(digest)
        return True

    def sum(self, tensor):
        self.mine = tensor
        return tensor + self.numbers


def test_ranks_that_share_the_tokens_have_the_sums_of_the_whole():
    cond, uncond = run_of(5, (1, 16, 8)), run_of(5, (1, 16, 8), seed=50)

    def measured(tokens, steps=range(5)):
        moments = Moments(window=3)
        for step in steps:
            moments.add("cond", cond[step][:, tokens], step=step)
            moments.add("uncond", uncond[step][:, tokens], step=step)
        return moments

    first, last, whole = measured(slice(6)), measured(slice(6, 16)), measured(slice(16)).calibration(SIGMAS)
    theirs = Other()
    last.sum_over(theirs)
    mine = Other(theirs.mine)
    first.sum_over(mine)
    found = first.calibration(SIGMAS)
    assert found.provenance["ranks"] == 2
    assert mine.told == theirs.told
    for name in ("cond", "uncond"):
        for part in ("gram", "ratios", "spread", "cosine"):
            np.testing.assert_allclose(getattr(found.streams[name], part), getattr(whole.streams[name], part), rtol=1e-5)
    np.testing.assert_allclose(found.cross["cond", "uncond"], whole.cross["cond", "uncond"], rtol=1e-5)
    fewer = Other()
    measured(slice(6), range(1, 5)).sum_over(fewer)
    assert fewer.told != theirs.told, "of other steps"


def test_half_precision_is_widened_in_pieces(monkeypatch):
    residuals = run_of(5, (1, 13, 8), dtype=torch.bfloat16)
    for chunk in (10, 100, 10_000):  # of 1, of 4 and of all tokens
        monkeypatch.setattr(_moments, "CHUNK", chunk)
        moments = Moments(window=2)
        for residual in residuals:
            moments.add("single", residual)
        same(moments.calibration(SIGMAS).streams["single"], residuals, 2, rtol=1e-5)


@pytest.mark.parametrize("other", ["other", "Another"])
def test_the_levels_of_a_run_are_those_of_its_first_stream(other):
    moments, name = Moments(window=2), "".join(["a", " stream"])
    with magpolicy.Session([1.0] * 3, sigmas=SIGMAS[:3], threshold=0, max_skips=0, retention=1) as session:
        for residual in run_of(3, (1, 6, 8)):
            session.decide(other, sigma=0.05)
            session.commit()
            session.decide("".join(["a ", "stream"]))
            session.commit()
            moments.add(name, residual)
    assert _moments.curve_of(moments, session).sigmas == tuple(SIGMAS[:3])
    assert _moments.calibrated(moments, session, {}).sigmas == tuple(SIGMAS[:3])


@pytest.mark.parametrize(("levels", "known"), [([0.9, 0.6, 0.3], True), ([0.3, 0.6, 0.9], False), ([0.9, 0.6, 0.6], False)])
def test_a_curve_has_noise_levels_where_they_fall(levels, known):
    """A run that adds noise, as one that inverts a picture does, makes a curve of its steps alone."""
    moments = Moments(window=2)
    with magpolicy.Session([1.0] * 3, threshold=0, max_skips=0, retention=1) as session:
        for residual, level in zip(run_of(3, (1, 6, 8)), levels, strict=True):
            session.decide("single", sigma=level)
            session.commit()
            moments.add("single", residual)
    assert _moments.curve_of(moments, session).sigmas == (tuple(levels) if known else None)


def test_streams_are_told_by_their_names_alone():
    moments = Moments(window=2)
    for residual in run_of(3, (1, 6, 8)):
        for name in ("cond", "uncond"):
            moments.add("".join(name), residual)  # another string each time
    found = moments.calibration(SIGMAS[:3])
    assert set(found.streams) == {"cond", "uncond"}
    assert set(found.cross) == {("cond", "uncond")}


def test_a_long_run_that_was_stopped_behind_its_last_step_is_whole():
    moments = Moments(window=1)
    for residual in torch.arange(1.0, 301.0):
        moments.add("a", residual.reshape(1, 1, 1))
        moments.add("b", residual.reshape(1, 1, 1))
    moments.stopped = True
    session = magpolicy.Session([1.0] * 300, threshold=0, max_skips=0, retention=1)
    assert len(_moments.calibrated(moments, session, {}).sigmas) == 300
    moments.add("a", torch.ones(1, 1, 1))
    with pytest.raises(RunError, match=r"the run got to step 301 of 300 \(b: fewer\)"):
        _moments.calibrated(moments, session, {})


def test_memory_is_bounded_by_the_window():
    moments = Moments(window=3)
    sizes = []
    for residual in run_of(12, (1, 6, 8), dtype=torch.bfloat16):
        moments.add("single", residual)
        sizes.append(moments.nbytes)
    assert set(sizes) == {6 * (3 + 1) * 8 * 2}


@pytest.mark.parametrize("window", [3, 4, 6])
def test_residuals_of_a_run_that_the_window_spans_are_there_as_a_whole(window):
    residuals, moments = run_of(5, (2, 6, 8)), Moments(window=window)
    for residual in residuals:
        moments.add("cond", residual)
    held = moments.held()
    if window < 4:
        assert held == {}
    else:
        torch.testing.assert_close(held["cond"], torch.stack([residual.flatten() for residual in residuals]))


def test_residuals_are_neither_held_nor_written_to():
    residual = draw(1, 6, 8)
    before = residual.clone()
    moments = Moments(window=1)
    moments.add("single", residual)
    residual.add_(1)
    moments.add("single", residual)
    same(moments.calibration([1.0, 0.5]).streams["single"], [before, residual], 1)
    assert torch.equal(residual, before + 1)


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode"])
def test_gradient_modes(mode):
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    moments, residuals = Moments(window=2), run_of(5, (1, 6, 8))
    for index, residual in enumerate(residuals):
        with context() if index % 2 else torch.enable_grad():
            moments.add("single", residual * 1.0 if index % 2 else residual.clone().requires_grad_())
    same(moments.calibration(SIGMAS).streams["single"], residuals, 2)


@pytest.mark.parametrize("in_place", [True, False])
def test_sums_are_reduced_over_ranks_before_ratios_are_formed(in_place):
    """Two ranks with half of the tokens each: both get the moments of all tokens."""
    residuals = run_of(5, (1, 10, 8))
    sent = []

    def collect(sums):  # the first round: what each rank would send
        sent.append(sums.clone())

    for half in (slice(4), slice(4, None)):
        moments = Moments(window=2, reduce=collect)
        for residual in residuals:
            moments.add("cond", residual[:, half])
            moments.add("uncond", residual[:, half] * 2)
        moments.calibration(SIGMAS)
    rounds = iter([a + b for a, b in zip(sent[:3], sent[3:], strict=True)])

    def reduce(sums):
        if not in_place:
            return next(rounds)
        sums.copy_(next(rounds))
        return "a handle of the work"

    moments = Moments(window=2, reduce=reduce)
    for residual in residuals:
        moments.add("cond", residual[:, :4])
        moments.add("uncond", residual[:, :4] * 2)
    found = moments.calibration(SIGMAS)
    same(found.streams["cond"], residuals, 2)
    np.testing.assert_allclose(found.cross["cond", "uncond"][:, 2], 2 * found.streams["cond"].gram[:, 0], rtol=1e-5)


def test_a_token_without_a_residual_does_not_count():
    first, second = torch.ones(1, 3, 4), 2 * torch.ones(1, 3, 4)
    first[0, 0] = 0
    moments = Moments(window=1)
    moments.add("single", first)
    moments.add("single", second)
    assert moments.curve().ratios["single"] == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 1, float("nan"), 1, 1], "not finite at step 2"),
        ([1, 0, 1, 1, 1], "is 0 at step"),
        ([1, 1, 1e20, 1, 1], "not finite"),
    ],
)
def test_residuals_that_make_no_calibration(values, message):
    moments = Moments(window=1)
    for value in values:
        moments.add("single", torch.full((1, 3, 4), float(value)))
    with pytest.raises(ArgumentError, match=message):
        moments.calibration(SIGMAS)
    with pytest.raises(ArgumentError, match=message):
        moments.curve()


@pytest.mark.parametrize("tokens", [2, 5])
def test_another_resolution_midway_is_an_error_at_the_end_and_no_crash(tokens):
    moments = Moments()
    moments.add("single", torch.ones(1, 3, 4))
    moments.add("single", torch.ones(1, tokens, 4))
    moments.add("single", torch.ones(1, tokens, 4))
    with pytest.raises(ArgumentError, match="keep the resolution"):
        moments.calibration([1.0, 0.5, 0.2])


def test_levels_that_do_not_fit():
    moments = Moments()
    with pytest.raises(ArgumentError, match="nothing was measured"):
        moments.calibration([])
    moments.add("single", torch.ones(1, 3, 4))
    with pytest.raises(ArgumentError, match="2 levels for 1 evaluations"):
        moments.calibration([1.0, 0.5])


@pytest.mark.parametrize("wrong", [{"window": 0}, {"window": 2.5}, {"tokens": 0}, {"window": "many"}], ids=str)
def test_settings(wrong, plain):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        Moments(**wrong)
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        magpolicy.attach(plain.module, calibrate=True, **wrong)
    assert "forward" not in vars(plain.module)


def test_defaults_are_those_of_attach():
    request = {field.name: field.default for field in magpolicy.AttachRequest.__attrs_attrs__}
    assert Moments().tokens == request["tokens"]
    assert request["window"] is None


@pytest.mark.parametrize(("steps", "window"), [(2, 1), (9, 8), (28, 27), (120, 100)])
def test_the_window_spans_the_run(plain, steps, window):
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        with handle.run(steps=steps):
            for _ in range(steps):
                plain()
        assert handle.calibration.window == window


# Through a handle


def measure(plain, kit, sigmas=SIGMAS, streams=("single",), **options):
    """A calibration through a handle, and the residuals of the model itself."""
    residuals = {stream: [] for stream in streams}
    with magpolicy.attach(plain.module, calibrate=True, **options) as handle:
        with handle.run(sigmas=sigmas):
            for key in range(len(sigmas)):
                for place, stream in enumerate(streams):
                    x = kit.noise(key, place, (1, 9, 8))
                    with handle.stream(stream):
                        residuals[stream].append(plain.module(x) / 2 - x)  # this model doubles what leaves its stack
            assert handle.residuals_held == 0, "a calibration needs no residuals kept"
        return handle.calibration, residuals


def test_a_handle_measures_what_the_model_did(plain, kit):
    found, residuals = measure(plain, kit, streams=("cond", "uncond"), window=3)
    for stream in ("cond", "uncond"):
        same(found.streams[stream], residuals[stream], 3, rtol=1e-4)
    assert found.sigmas == tuple(SIGMAS)
    assert found.provenance["model"] == "Net"
    assert found.provenance["dtype"] == "float32"
    assert found.provenance["scope"] == "stack"
    assert found.provenance["residual"] == [1, 9, 8]
    assert set(found.provenance["versions"]) == {"magpolicy", "torch"}


def test_batched_streams_are_measured_each(plain, kit):
    apart, _ = measure(plain, kit, streams=("cond", "uncond"))
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=SIGMAS), handle.stream("cond", "uncond"):
        for key in range(5):
            plain.module(torch.cat([kit.noise(key, place, (1, 9, 8)) for place in (0, 1)]))
        joint = handle.calibration
    for stream in ("cond", "uncond"):
        np.testing.assert_allclose(joint.streams[stream].gram, apart.streams[stream].gram, rtol=1e-5)
    np.testing.assert_allclose(joint.cross["cond", "uncond"], apart.cross["cond", "uncond"], rtol=1e-4, atol=1e-6)


def test_calibrating_changes_no_bit_and_offloading_no_figure(plain, kit):
    expected = [plain(key) for key in range(5)]
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=SIGMAS):
        assert all(torch.equal(plain(key), value) for key, value in enumerate(expected))
        here = handle.calibration
    with magpolicy.attach(plain.module, calibrate=True, offload="cpu") as handle, handle.run(sigmas=SIGMAS):
        for key in range(5):
            plain(key)
        there = handle.calibration
    assert here.streams["single"] == there.streams["single"]


def test_levels_that_are_not_known_are_assumed_and_said_so(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(steps=4):
        for key in range(4):
            plain(key)
    assert handle.calibration.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert handle.calibration.provenance["sigmas"] == "assumed"
    assert handle.curve.assumed


def test_a_run_of_part_of_the_steps(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=SIGMAS, start=2):
        for key in range(3):
            plain(key)
    assert handle.calibration.sigmas == tuple(SIGMAS[2:])
    assert handle.curve.sigmas == tuple(SIGMAS[2:])


def test_a_run_that_was_stopped_yields_none_and_says_how_far_it_got(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        with pytest.raises(KeyboardInterrupt), handle.run(sigmas=SIGMAS):  # noqa: PT012 - what is stopped is the run
            for key in range(3):
                plain(key)
            with pytest.raises(RunError, match="step 3 of 5"):  # during the run as well
                _ = handle.calibration
            raise KeyboardInterrupt
        with pytest.raises(RunError, match="step 3 of 5"):
            _ = handle.calibration


def test_a_run_that_failed_between_two_streams_of_its_last_step_yields_none(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        with pytest.raises(ZeroDivisionError), handle.run(sigmas=SIGMAS):  # noqa: PT012
            for key in range(5):
                with handle.stream("cond"):
                    plain(key)
                _ = 1 / (4 - key)
                with handle.stream("uncond"):
                    plain(key)
        with pytest.raises(RunError, match="uncond: fewer"):
            _ = handle.calibration


def test_a_second_order_sampler_that_evaluates_a_level_twice(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=[1.0, 0.5, 0.5, 0.2]):
        for key in range(4):
            plain(key)
    assert handle.calibration.sigmas == (1.0, 0.5, 0.5, 0.2)
    assert handle.calibration.curve.sigmas == (1.0, 0.5, 0.2)
    assert handle.curve.assumed, "the ratios are those of evaluations, not of levels"


def test_a_calibration_that_is_not_there(plain):
    with magpolicy.attach(plain.module, ratios=[1.0] * 3, threshold=0, max_skips=0, retention=1.0) as handle:
        with pytest.raises(RunError, match="no run yet"):
            _ = handle.calibration
        with handle.run():
            plain()
        with pytest.raises(RunError, match="calibrate=True"):
            _ = handle.calibration
