"""Forecasts: the arithmetic, what is stored for them and for how long, and the models they are put into."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import ResidualStore, run_step  # noqa: E402
from magpolicy_torch.residuals import _arithmetic  # noqa: E402

MASK = (1, 1, 0, 1, 0, 0)
COEFFICIENTS = (0.0, 0.0, 0.6, 0.0, -0.4, 0.8)


def schedule(mask=MASK, coefficients=COEFFICIENTS):
    return Schedule.from_mask(mask, coefficients=coefficients)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(found, true):
    return float((found.double() - true).square().mean().sqrt())


# The arithmetic


def numbers(least, most):
    """Without subnormal ones: what torch 2.5 compiles makes the whole process take those for 0."""
    return st.floats(least, most, allow_subnormal=False)


@settings(max_examples=50, deadline=None)
@given(c=numbers(-2, 4), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_forecast_is_the_formula(c, dtype):
    last, before = draw(1, 6, 8).to(dtype), draw(1, 6, 8, seed=1).to(dtype)
    true = last.double() + c * (last.double() - before.double())
    torch.testing.assert_close(_arithmetic.forecast([last, before], [c]).double(), true, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(c=st.tuples(numbers(-2, 4), numbers(-2, 2)), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_second_order_forecast_is_the_formula_and_writes_to_nothing(c, dtype):
    residuals = [draw(1, 6, 8, seed=seed).to(dtype) for seed in range(3)]
    copies = [t.clone() for t in residuals]
    last, before, first = (t.double() for t in residuals)
    true = last + c[0] * (last - before) + c[1] * (before - first)
    torch.testing.assert_close(_arithmetic.forecast(residuals, c).double(), true, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(copies, residuals, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_a_second_order_forecast_rounds_less_than_its_terms_would(dtype):
    """Residuals of one run: differences are small against them."""
    last = draw(100, 1000)
    before = last + 0.1 * draw(100, 1000, seed=1)
    residuals = [t.to(dtype) for t in (last, before, before + 0.1 * draw(100, 1000, seed=2))]
    last, before, first = residuals
    for a, b in ((1.7, 0.6), (0.8, -0.4)):
        exact = last.double() + a * (last.double() - before.double()) + b * (before.double() - first.double())
        found = error(_arithmetic.forecast(residuals, (a, b)), exact)
        assert found < 1.5 * error(exact.to(dtype), exact)  # twice rounded, and nothing more
        assert error((1 + a) * last + (b - a) * before - b * first, exact) > 1.5 * found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [-0.8, -0.4, 0.37, 0.7, 1.7, 2.3])
def test_in_16_bit_a_forecast_is_the_truth_rounded_once(dtype, c):
    """Nothing in that dtype can be nearer. Rounding each of two products, as written naively, is 1.3 to 3 times as far off."""
    last = draw(100, 1000)
    before = (last + 0.3 * draw(100, 1000, seed=1)).to(dtype)
    last = last.to(dtype)
    true = last.double() + c * (last.double() - before.double())
    found = _arithmetic.forecast([last, before], [c])
    assert float((found == true.to(dtype)).double().mean()) > 0.995  # the rest lies at a tie within float32's rounding
    naive = (1 + c) * last - c * before
    assert error(naive, true) > 1.3 * error(found, true)
    assert error(last + c * (last - before), true) >= error(found, true)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residuals_stored_in_16_bit_are_forecast_in_the_models_own_dtype(dtype):
    """The model computes in float32: only storing rounds, the forecast adds a thousandth of what 16 bit would."""
    store = ResidualStore(storage_dtype=dtype)
    for seed in (1, 2):
        store.put("a", draw(100, 100, seed=seed).float(), keep=2)
    before, last = (draw(100, 100, seed=seed).float().to(dtype) for seed in (1, 2))
    true = last.double() + 0.7 * (last.double() - before.double())
    found = store.take("a", last.float(), (0.7,))
    assert found.dtype == torch.float32
    assert 1000 * error(found, true) < error(last + 0.7 * (last - before), true)


def test_residuals_stored_wider_than_the_model_are_rounded_at_the_end():
    store = ResidualStore(storage_dtype=torch.float32)
    before, last = draw(50, 50, seed=1).bfloat16(), draw(50, 50, seed=2).bfloat16()
    store.put("a", before)
    store.put("a", last, keep=2)
    found = store.take("a", last, (0.7,))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, _arithmetic.forecast([last.float(), before.float()], [0.7]).bfloat16())


# The store


def test_two_residuals_are_kept_where_asked_for_and_no_more():
    store, size = ResidualStore(), 2 * 3 * 4
    residuals = [torch.full((2, 3), float(i)) for i in range(5)]
    like = residuals[0]
    store.put("a", residuals[0])
    assert (store.count, store.nbytes) == (1, size)
    store.put("a", residuals[1], keep=2)
    assert (store.count, store.nbytes) == (2, 2 * size)
    assert torch.equal(store.take("a", like, (2.0,)), torch.full((2, 3), 3.0))
    assert torch.equal(store.take("a", like), residuals[1])
    store.put("a", residuals[3], keep=2)
    assert torch.equal(store.take("a", like, (1.0,)), torch.full((2, 3), 5.0))
    assert (store.count, store.nbytes, store.streams) == (2, 2 * size, ("a",))
    store.trim("a", 1)
    assert (store.count, store.nbytes) == (1, size)
    store.put("a", residuals[4], keep=0)
    assert (store.count, store.nbytes, store.streams) == (0, 0, ())
    assert store.take("a", like) is Decision.NO_RESIDUAL


def test_taking_writes_to_nothing():
    store, before, last = ResidualStore(), draw(2, 3, seed=1), draw(2, 3, seed=2)
    store.put("a", before)
    store.put("a", last, keep=2)
    like = draw(2, 3, seed=3)
    copies = [t.clone() for t in (before, last, like)]
    first = store.take("a", like, (0.5,))
    assert torch.equal(first, store.take("a", like, (0.5,)))
    first.zero_()
    assert all(torch.equal(a, b) for a, b in zip(copies, (before, last, like), strict=True))
    assert not torch.equal(store.take("a", like, (0.5,)), first)


@pytest.mark.parametrize(
    ("older", "reason"),
    [(None, "NO_RESIDUAL"), (torch.full((2, 3), float("nan")), "NOT_FINITE"), (torch.ones(5, 3), "MISMATCH"),
     (torch.ones(2, 3, dtype=torch.float64), "MISMATCH")],
    ids=["none", "nan", "shape", "dtype"],
)  # fmt: skip
def test_where_only_the_older_one_is_unusable_the_last_one_is_held_and_it_is_said_why(older, reason):
    store, last = ResidualStore(), torch.full((2, 3), 2.0)
    if older is not None:
        store.put("a", older)
    store.put("a", last, keep=2)
    assert torch.equal(store.take("a", last, (1.0,)), last)
    assert store.held("a") is Decision[reason]
    assert store.nbytes == 2 * 3 * 4
    store.put("a", last * 2, keep=2)
    assert torch.equal(store.take("a", last, (1.0,)), torch.full((2, 3), 6.0))
    assert store.held("a") is None


def test_where_the_last_one_is_unusable_there_is_nothing():
    store = ResidualStore()
    store.put("a", torch.ones(2, 3))
    store.put("a", torch.full((2, 3), float("inf")), keep=2)
    assert store.take("a", torch.ones(2, 3), (1.0,)) is Decision.NOT_FINITE
    assert store.missing("a") is Decision.NOT_FINITE
    store.put("a", torch.ones(2, 3), keep=2)
    assert store.take("a", torch.ones(5, 3), (1.0,)) is Decision.MISMATCH


# run_step


@pytest.mark.parametrize("options", [{}, {"offload": "cpu"}, {"storage_dtype": torch.bfloat16}], ids=str)
def test_run_step_forecasts(options):
    loose = "storage_dtype" in options
    x = [draw(2, 3, 4, seed=i).float() for i in range(6)]

    def heavy(t):
        return t * t

    with magpolicy.Session(schedule()) as session:
        found = [run_step(session, t, heavy, **options) for t in x]
    r = [heavy(t) - t for t in x]
    for step, (j, p) in {2: (1, 0), 4: (3, 1), 5: (3, 1)}.items():
        expected = x[step] + r[j] + COEFFICIENTS[step] * (r[j] - r[p])
        torch.testing.assert_close(found[step], expected, rtol=0.03 if loose else 1e-5, atol=0.1 if loose else 1e-5)


def test_run_step_forecasts_each_stream_of_a_batch():
    x = [draw(4, 3, 4, seed=i).float() for i in range(6)]

    def heavy(t):
        return t * t

    rows = {"cond": COEFFICIENTS, "uncond": tuple(2 * c for c in COEFFICIENTS)}
    plan = Schedule.from_mask(dict.fromkeys(rows, MASK), coefficients=rows)
    with magpolicy.Session(plan) as session:
        found = [run_step(session, t, heavy, stream=["cond", "uncond"]) for t in x]
    r = [heavy(t) - t for t in x]
    for place, row in enumerate(rows.values()):
        half = slice(2 * place, 2 * place + 2)
        expected = (x[5] + r[3] + row[5] * (r[3] - r[1]))[half]
        torch.testing.assert_close(found[5][half], expected, rtol=1e-5, atol=1e-5)


# Models


def test_a_skip_adds_the_forecast_to_the_input_it_gets(case):
    """On every model: the stack's output is its input plus the forecast from the last two computed residuals."""
    around = [case.around_the_stack(key) for key in range(6)]
    r = [y - x for x, y in around]
    with magpolicy.attach(case.module, schedule=schedule()) as handle, handle.run():
        found = [case(key) for key in range(6)]
    for step, (j, p) in {2: (1, 0), 4: (3, 1), 5: (3, 1)}.items():
        expected = case.with_stack_output(step, around[step][0] + r[j] + COEFFICIENTS[step] * (r[j] - r[p]))
        torch.testing.assert_close(found[step], expected, rtol=1e-4, atol=1e-5)
    assert handle.report.forecasts == 3
    assert handle.report.held == {}
    assert "forecast 3 of 3 reused" in str(handle.report)


def test_a_skip_adds_the_second_order_forecast(case):
    around = [case.around_the_stack(key) for key in range(6)]
    r = [y - x for x, y in around]
    second = {2: (0.6,), 4: (-0.4, 0.3), 5: (0.8, -0.2)}
    with magpolicy.attach(case.module, schedule=schedule(MASK, [second.get(i, 0) for i in range(6)])) as handle, handle.run():
        found = [case(key) for key in range(6)]
    for step in (4, 5):
        a, b = second[step]
        forecast = r[3] + a * (r[3] - r[1]) + b * (r[1] - r[0])
        torch.testing.assert_close(found[step], case.with_stack_output(step, around[step][0] + forecast), rtol=1e-4, atol=1e-5)
    assert (handle.report.forecasts, handle.report.held) == (3, {})


def test_what_is_held_in_place_of_a_forecast_is_the_last_residual(case):
    with magpolicy.attach(case.module, schedule=schedule(), forecast="hold") as handle:
        with handle.run():
            held = [case(key) for key in range(6)]
        assert handle.report.forecasts == 0
    with magpolicy.attach(case.module, schedule=Schedule.from_mask(MASK)) as handle, handle.run():
        expected = [case(key) for key in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(held, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"scope": "model"}, {"offload": "cpu"}], ids=str)
def test_scopes_and_offloading(plain, kit, options):
    x = [kit.noise(key, (1, 9, 8)) for key in range(6)]
    whole = [plain.module(t) for t in x]
    with magpolicy.attach(plain.module, schedule=schedule(), **options) as handle, handle.run():
        found = [plain.module(t) for t in x]
    if options.get("scope") == "model":
        r = [y - t for t, y in zip(x, whole, strict=True)]
        expected = x[5] + r[3] + COEFFICIENTS[5] * (r[3] - r[1])
    else:  # this model doubles what leaves its stack
        r = [y / 2 - t for t, y in zip(x, whole, strict=True)]
        expected = 2 * (x[5] + r[3] + COEFFICIENTS[5] * (r[3] - r[1]))
    torch.testing.assert_close(found[5], expected, rtol=1e-5, atol=1e-5)


def test_batched_streams_are_forecast_each_and_as_alone(plain, kit):
    x = [kit.noise(key, (2, 9, 8)) for key in range(6)]
    with magpolicy.attach(plain.module, schedule=schedule()) as handle:
        with handle.run(), handle.stream("cond", "uncond"):
            both = [plain.module(t) for t in x]
        apart = [[], []]
        with handle.run():
            for t in x:
                for place, stream in enumerate(("cond", "uncond")):
                    with handle.stream(stream):
                        apart[place].append(plain.module(t[place : place + 1]))
    for step in range(6):
        torch.testing.assert_close(both[step], torch.cat([apart[0][step], apart[1][step]]), rtol=1e-5, atol=1e-6)


def test_memory_by_the_step_to_the_byte(plain):
    """Two residuals only while a forecast needs both, none where nothing to come uses it, and less already while computing."""
    size = 9 * 8 * 4
    mask, coefficients = (1, 1, 1, 0, 1, 0, 0, 1, 1), (0, 0, 0, 0.5, 0, 0, 0, 0, 0)
    with magpolicy.attach(plain.module, schedule=schedule(mask, coefficients)) as handle:
        during, after = [], []

        def held():
            return handle._run.get().on(handle.stack).store.nbytes

        hook = plain.blocks[1].inner.register_forward_hook(lambda *_: during.append(held() // size))
        with handle.run():
            for key in range(9):
                plain(key)
                after.append(held() / size)
        hook.remove()
    #                 computed 0, 1 (wanted before 3), 2 (used at 3), 4 (used at 5 and 6), 7, 8
    assert after == [0, 1, 2, 2, 1, 1, 1, 0, 0]
    assert during == [0, 0, 1, 0, 0, 0]


def test_a_change_of_resolution_holds_until_two_of_the_new_one_are_computed(plain):
    with magpolicy.attach(plain.module, schedule=schedule((1, 1, 1, 0), (0, 0, 0, 0.5))) as handle:
        with handle.run():
            plain(0)
            plain(1)
            plain(2, tokens=5)
            plain(3, tokens=5)
        assert (handle.report.forecasts, handle.report.held) == (0, {"mismatch": 1})
        assert "held 1 (mismatch)" in str(handle.report)
        assert handle.report.strip == "███·"


def test_a_step_computed_against_the_plan_makes_its_coefficients_void(plain):
    """The coefficients are for the residuals that were planned; with others, the last one is held."""
    with magpolicy.attach(plain.module, schedule=schedule((1, 1, 0, 0), (0, 0, 0.5, 0.5))) as handle, handle.run():
        plain(0)
        plain(1)
        plain(2, tokens=5)  # another resolution: computed
        first = plain(3, tokens=5)
    assert [e.decision for e in handle.report.trace][2:] == [Decision.MISMATCH, Decision.REUSED]
    assert handle.report.forecasts == 0
    with magpolicy.attach(plain.module, schedule=Schedule.from_mask((1, 0))) as handle, handle.run():
        plain(2, tokens=5)
        assert torch.equal(plain(3, tokens=5), first)


@pytest.mark.parametrize("forecast", ["linear", "calibrated"])
def test_a_rule_with_forecasts(plain, forecast):
    """Not planned: what the future needs is not known, so two residuals are kept, and the formula holds."""
    sigmas = [1.0, 0.8, 0.7, 0.5, 0.3, 0.1]
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=sigmas):
        for key in range(6):
            plain(0.1 * key)
        calibration = handle.calibration
    rule = {"threshold": 9.0, "max_skips": 2, "retention": 0.3, "forecast": forecast}
    with magpolicy.attach(plain.module, calibration=calibration, **rule) as handle:
        with handle.run(sigmas=sigmas):
            outputs = [plain(key) for key in range(6)]
        report = handle.report
    assert report.schedule == magpolicy.simulate(calibration, sigmas=sigmas, **rule)
    planned = Schedule.from_mask(
        report.schedule.mask, coefficients=magpolicy.simulate(calibration, sigmas=sigmas, **rule).coefficients[0]
    )
    with magpolicy.attach(plain.module, schedule=planned) as handle, handle.run():
        for key, output in enumerate(outputs):
            torch.testing.assert_close(plain(key), output)
    assert forecast == "calibrated" or report.forecasts == report.skipped > 0


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode"])
def test_gradient_modes(plain, mode):
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    plain.module.requires_grad_(True)
    with magpolicy.attach(plain.module, schedule=schedule()) as handle, handle.run(), context():
        found = [plain(key) for key in range(6)]
    plain.module.requires_grad_(False)
    with magpolicy.attach(plain.module, schedule=schedule()) as handle, handle.run():
        for key in range(6):
            torch.testing.assert_close(plain(key), found[key].detach().clone())


def test_no_forecast_stands_in_where_gradients_are_wanted(plain, kit):
    leaf, alone = (kit.noise(2, (1, 9, 8)).requires_grad_() for _ in range(2))

    def attached():
        with magpolicy.attach(plain.module, schedule=schedule()) as handle, handle.run():
            with torch.inference_mode():
                plain(0)
                plain(1)
            plain.module(leaf).sum().backward()
        return handle.report

    with pytest.warns(UserWarning, match="gradients of what it is given"):
        report = attached()
    assert report.forecasts == 0
    plain.module(alone).sum().backward()
    assert torch.equal(leaf.grad, alone.grad)
