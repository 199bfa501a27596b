"""The arithmetic, the store, and run_step."""

import gc
import subprocess
import sys
import weakref

import pytest

import magpolicy
from magpolicy import ArgumentError, Decision, RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import ResidualStore, run_step  # noqa: E402
from magpolicy_torch.residuals import _arithmetic  # noqa: E402
from magpolicy_torch.residuals._turns import Turns  # noqa: E402


def test_a_difference_is_fresh_and_without_history():
    before = torch.ones(1, 2, 3, requires_grad=True)
    after = before * 3
    found = _arithmetic.difference(after, before)
    assert not found.requires_grad
    assert torch.equal(found, torch.full((1, 2, 3), 2.0))
    assert found.data_ptr() not in (before.data_ptr(), after.data_ptr())


def test_applying_writes_nothing_in_place_and_keeps_the_dtype():
    before, residual = torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 2, 3)
    found = _arithmetic.apply(before, residual)
    assert found.dtype == torch.bfloat16
    assert torch.equal(before, torch.ones_like(before))
    assert torch.equal(found, torch.full_like(before, 2))


def like(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def test_what_leaves_a_stack_as_it_enters_needs_no_base():
    assert _arithmetic.Base.of(like(1, 2, 3), like(1, 2, 3)) is None
    given = like(1, 2, 3)
    assert _arithmetic.counted_from(None, given, like(1, 2, 3)) is given
    for other in (like(1, 2, 4), like(1, 2), like(1, 2, 3, dtype=torch.float16), like(1, 2, 3).to("meta")):
        assert _arithmetic.counted_from(None, given, other) is None


def test_a_wider_output_is_counted_from_the_input_in_its_type():
    base = _arithmetic.Base.of(like(1, 2, 3, dtype=torch.bfloat16), like(1, 2, 3))
    given = like(1, 5, 3, dtype=torch.bfloat16) * 3
    found = _arithmetic.counted_from(base, given, like(1, 5, 3))
    assert torch.equal(found, given.float())
    assert found.dtype is torch.float32
    assert base.before(given, like(1, 4, 3)) is None
    assert base.before(given.float(), like(1, 5, 3)) is None
    assert base.before(given, like(1, 5, 3, dtype=torch.bfloat16)) is None


@pytest.mark.parametrize(
    ("then", "now", "fits"),
    [
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((2, 4, 8, 8), (2, 3, 8, 8)), True),
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((5, 4, 6, 7), (5, 3, 6, 7)), True),  # other samples, height and width
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((5, 4, 6, 7), (4, 3, 6, 7)), False),
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((2, 5, 8, 8), (2, 3, 8, 8)), False),
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((2, 4, 8, 8), (2, 4, 8, 8)), False),
        (((2, 4, 8, 8), (2, 3, 8, 8)), ((2, 4, 8), (2, 3, 8)), False),
        (((2, 4), (2, 3, 8)), ((2, 4), (2, 3, 8)), True),  # of other dimensions: those alone
        (((2, 4), (2, 3, 8)), ((3, 4), (3, 3, 8)), False),
        (((2, 3, 8), (2, 4)), ((2, 3, 8), (2, 4)), True),
        (((2, 3, 8), (2, 4)), ((3, 3, 8), (3, 4)), False),
        (((2, 4, 8), (2, 3, 8)), ((2, 4), (2, 3, 8)), False),
        (((2, 4, 8), (2, 3, 8)), ((2, 4, 8), (2, 3)), False),
        (((2, 4), (2, 3)), ((2, 4, 8), (2, 3, 8)), False),
        (((2, 4), (2, 3)), ((2, 4, 8), (2, 3)), False),
    ],
    ids=str,
)
def test_an_output_of_another_shape_is_counted_from_nothing(then, now, fits):
    base = _arithmetic.Base.of(*(like(*shape) for shape in then))
    found = base.before(*(like(*shape) for shape in now))
    assert found is None if not fits else torch.equal(found, torch.zeros(now[1]))


def test_turns_are_those_of_the_last_three_residuals():
    turns, rows = Turns(), torch.randn(5, 1, 600, 4, generator=torch.Generator().manual_seed(0))
    for step, row in enumerate(rows):
        found = turns.add("a", row)
        if step < 2:
            assert found is None
        else:
            new, old = ((rows[i] - rows[i - 1])[:, ::2] for i in (step, step - 1))  # about 256 tokens are looked at
            torch.testing.assert_close(found, torch.stack([(new * old).sum(), new.square().sum(), old.square().sum()]))
        assert turns.nbytes == (1 if step == 0 else 2) * 300 * 4 * 4
    assert turns.add("a", rows[0][:, :500]) is None, "of another shape"
    assert turns.add("a", rows[1][:, :500]) is None
    assert turns.add("a", rows[2][:, :500]) is not None
    assert turns.add("b", rows[0]) is None
    turns.drop("a")
    turns.drop("c")
    assert turns.nbytes == 300 * 4 * 4
    assert turns.add("a", rows[3][:, :500]) is None
    turns.clear()
    assert turns.nbytes == 0


def test_the_store_gives_back_what_was_put_or_says_why_not():
    store, residual = ResidualStore(), torch.ones(1, 4, 8)
    assert store.take("a", residual) is Decision.NO_RESIDUAL
    store.put("a", residual)
    assert torch.equal(store.take("a", residual), residual)
    assert store.take("b", residual) is Decision.NO_RESIDUAL
    for other in (torch.ones(1, 5, 8), torch.ones(2, 4, 8), residual.half(), residual.to("meta")):
        assert store.take("a", other) is Decision.MISMATCH
    store.put("a", residual / 0)
    assert store.take("a", residual) is Decision.NOT_FINITE
    store.clear()
    assert (store.take("a", residual), store.nbytes) == (Decision.NO_RESIDUAL, 0)


def test_a_value_that_the_storage_dtype_cannot_hold_is_not_reused():
    store = ResidualStore(storage_dtype=torch.float16)
    store.put("a", torch.full((1, 2, 2), 1e6))
    assert store.take("a", torch.ones(1, 2, 2)) is Decision.NOT_FINITE


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float8_e4m3fn, 0.04), (torch.float8_e5m2, 0.08)], ids=str)
def test_eight_bits_hold_residuals_of_any_size_with_a_known_error(dtype, within, size):
    residual = size * torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    store = ResidualStore(storage_dtype=dtype)
    store.put("a", residual)
    back = store.take("a", residual)
    error = ((back - residual).norm() / residual.norm()).item()
    assert 0 < error < within
    torch.testing.assert_close(store.losses[0].item(), error, rtol=1e-4, atol=0)
    assert store.nbytes == residual.numel()


def test_a_report_says_what_narrow_storage_costs(cases):
    case = cases["Plain"]()
    for dtype, within in ((None, None), (torch.bfloat16, 0.004), (torch.float8_e4m3fn, 0.05)):
        settings = {"schedule": magpolicy.Schedule.from_mask([1, 0, 0]), "storage_dtype": dtype}
        with magpolicy.attach(case.module, **settings) as handle, handle.run():
            case(0), case(1), case(2)
        if within is None:
            assert handle.report.storage_error is None
        else:
            assert 0 < handle.report.storage_error < within
            assert "kept with an error of" in str(handle.report)


@pytest.mark.parametrize("wrong", [{"offload": "disk"}, {"storage_dtype": torch.int8}, {"storage_dtype": "bf16"}], ids=str)
def test_store_settings(wrong):
    with pytest.raises(ArgumentError):
        ResidualStore(**wrong)


# run_step


class Heavy:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x * 2 + 1


def session(*mask):
    return magpolicy.Session(Schedule.from_mask(mask))


def test_run_step_computes_or_reuses():
    heavy, x = Heavy(), torch.arange(8.0).reshape(1, 2, 4)
    with session(1, 0, 0, 1) as run:
        first, again, moved = run_step(run, x, heavy), run_step(run, x, heavy), run_step(run, x + 1, heavy)
        assert heavy.calls == 1
        assert torch.equal(run_step(run, x + 1, heavy), (x + 1) * 2 + 1)
    assert torch.equal(again, first)
    assert torch.equal(moved, first + 1)
    assert [e.decision.skip for e in run.trace] == [False, True, True, False]
    with pytest.raises(RunError):
        run_step(run, x, heavy)


def test_run_step_streams_apart_and_batched():
    heavy, x = Heavy(), torch.arange(16.0).reshape(2, 2, 4)
    with session(1, 0, 0) as run:
        both = run_step(run, x, heavy, stream=["cond", "uncond"])
        assert torch.equal(run_step(run, x, heavy, stream=["cond", "uncond"]), both)
        for place, stream in enumerate(("cond", "uncond")):
            one = x[place : place + 1]
            assert torch.equal(run_step(run, one, heavy, stream=stream), both[place : place + 1])
    assert heavy.calls == 1


def test_run_step_with_a_function_that_writes_into_its_argument():
    x = torch.ones(1, 2, 4)
    with session(1, 0) as run:
        assert torch.equal(run_step(run, x.clone(), lambda t: t.add_(1)), x + 1)
        assert torch.equal(run_step(run, x * 5, lambda t: t.add_(1)), x * 5 + 1)
    assert run.trace[1].decision is Decision.REUSED


def test_run_step_computes_on_another_shape_and_nan():
    heavy = Heavy()
    with session(1, 0, 0, 0) as run:
        run_step(run, torch.ones(1, 2, 4), heavy)
        run_step(run, torch.full((1, 3, 4), float("nan")), heavy)
        run_step(run, torch.ones(1, 3, 4), heavy)
        run_step(run, torch.ones(1, 3, 4), heavy)
    assert [e.decision for e in run.trace][1:] == [Decision.MISMATCH, Decision.NOT_FINITE, Decision.REUSED]


def test_run_step_that_raises_can_be_repeated():
    x = torch.ones(1, 2, 4)
    with session(1, 0) as run:
        with pytest.raises(ZeroDivisionError):
            run_step(run, x, lambda t: t / (1 // 0))
        with pytest.raises(ArgumentError, match="returned shape"):
            run_step(run, x, lambda t: t[:, :1])
        with pytest.raises(ArgumentError, match="cannot share"):
            run_step(run, x, lambda t: t, stream=["a", "b"])
        run_step(run, x, lambda t: t + 1)
        assert torch.equal(run_step(run, x, lambda t: t), x + 1)


def test_run_step_frees_its_residuals():
    from magpolicy_torch.host._run_step import _stores

    heavy, x = Heavy(), torch.ones(1, 2, 4)
    run = session(1, 0)
    with pytest.raises(KeyboardInterrupt), run:  # noqa: PT012 - the run is what is left by it
        run_step(run, x, heavy, storage_dtype=torch.bfloat16)
        store = _stores[run]
        assert store.nbytes == 8 * 2
        raise KeyboardInterrupt
    assert store.nbytes == 0
    with run:  # the same session again: nothing of the last run, and freed again
        run_step(run, x, heavy)
        assert store.nbytes
    assert store.nbytes == 0
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


def test_run_step_gradients_flow_through_x():
    x = torch.ones(1, 2, 4, requires_grad=True)
    with session(1, 0) as run:
        run_step(run, x, lambda t: t * 3).sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 3))
        x.grad = None
        run_step(run, x, lambda t: t * 3).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_core_run_does_not_import_torch():
    """Plugins are loaded with the first run; this one must wait until it is needed."""
    code = (
        "import sys, magpolicy\n"
        "with magpolicy.Session([1.0, 1.0], threshold=1, max_skips=1, retention=0) as s: s.decide(); s.commit()\n"
        "assert any(p.name == 'torch' and p.problem is None for p in magpolicy.plugins())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
