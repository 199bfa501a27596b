"""What the store keeps, counts and measures, against cases computed by hand."""

import pytest

from magpolicy import Decision

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import ResidualStore  # noqa: E402
from magpolicy_torch.residuals import _arithmetic  # noqa: E402

BYTES = 2 * 3 * 4


def residual(value, shape=(1, 2, 3)):
    return torch.full(shape, float(value))


def values(store, stream="a"):
    """What is kept, the newest first: a number, or the reason why there is none."""
    return [e if isinstance(e, Decision) else e.data.flatten()[0].item() for e in store._entries.get(stream, ())]


def test_as_many_are_kept_as_are_asked_for():
    store = ResidualStore()
    for value, keep, kept in ((1, 1, [1]), (2, 2, [2, 1]), (3, 3, [3, 2, 1]), (4, 3, [4, 3, 2]), (5, 2, [5, 4]), (6, 1, [6])):
        store.put("a", residual(value), keep=keep)
        assert values(store) == kept
        assert (store.count, store.nbytes, store.near_nbytes) == (len(kept), BYTES * len(kept), 0)
    store.put("a", residual(6))
    assert values(store) == [6], "one, if nothing is said"
    for _ in range(2):
        store.put("a", residual(7), keep=0)
        assert (values(store), store.count, store.streams) == ([], 0, ())
    store.put("b", residual(1))
    store.refuse("a", keep=0)
    assert store.streams == ("b",)
    for keep in (0, 1, 2, 3):
        for value in (1, 2, 3):
            store.put("a", residual(value), keep=3)
        store.refuse("a", keep=keep)
        assert values(store) == [Decision.NOT_FINITE, 3, 2][:keep]
    assert (store.missing("a"), store.missing("b"), store.missing("c")) == (Decision.NOT_FINITE, None, Decision.NO_RESIDUAL)
    assert (store.streams, store.count) == (("b",), 3)
    store.refuse("a")
    assert values(store) == [Decision.NOT_FINITE]
    store.drop("a")
    store.drop("c")
    assert (store.missing("a"), store.count) == (Decision.NO_RESIDUAL, 1)


def test_trimming_keeps_the_newest():
    for keep in (0, 1, 2, 5):
        store = ResidualStore()
        for value in (1, 2, 3):
            store.put("a", residual(value), keep=3)
        store.trim("a", keep)
        store.trim("c", keep)
        assert values(store) == [3, 2, 1][:keep]
        assert store.streams == (("a",) if keep else ())


@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_forecast_is_formed_of_the_newest(offload):
    store = ResidualStore(offload)
    for value in (1, 4, 9):
        store.put("a", residual(value), keep=3)
    for coefficients, expected in (((), 9), ((0.5,), 9 + 0.5 * 5), ((0.5, -2.0), 9 + 0.5 * 5 - 2 * 3)):
        assert torch.equal(store.take("a", residual(0), coefficients), residual(expected))
        assert torch.equal(store.take("a", coefficients=coefficients), residual(expected))
        assert store.held("a") is None
    store.trim("a", 2)
    assert torch.equal(store.take("a", residual(0), (0.5, -2.0)), residual(9))
    assert store.held("a") is Decision.NO_RESIDUAL
    assert torch.equal(store.take("a", residual(0), (0.5,)), residual(11.5))
    assert store.held("a") is None
    store.put("a", residual(1, (1, 4, 3)), keep=2)
    assert torch.equal(store.take("a", residual(0, (1, 4, 3)), (0.5,)), residual(1, (1, 4, 3)))
    assert store.held("a") is Decision.MISMATCH
    store.clear()
    assert store.held("a") is None


def test_a_forecast_of_narrow_residuals_is_formed_in_the_models_type_and_one_of_wide_ones_in_theirs():
    """7.96875 is what bfloat16 makes of 7.97; half of the difference of 2**-5 would be lost in it."""
    store = ResidualStore(storage_dtype=torch.bfloat16)
    for value in (7.9375, 7.96875):
        store.put("a", residual(value), keep=2)
    assert torch.equal(store.take("a", residual(0), (0.5,)), residual(7.984375))
    store, dice = ResidualStore(storage_dtype=torch.float32), torch.Generator().manual_seed(0)
    rows = [torch.randn(1, 64, 8, generator=dice).bfloat16() for _ in range(3)]
    for row in rows:
        store.put("a", row, keep=3)
    found = store.take("a", rows[0], (0.7, 0.3))
    q, p, j = (row.float() for row in rows)
    assert torch.equal(found, torch.lerp(p, j, 1.7).add_(p - q, alpha=0.3).bfloat16()), "rounded once, at the end"
    assert not torch.equal(found, torch.lerp(rows[1], rows[2], 1.7).add_(rows[1] - rows[0], alpha=0.3))


def test_a_forecast_may_be_larger_than_what_is_stored_can_be():
    store = ResidualStore(storage_dtype=torch.float16)  # up to 65504
    for value in (20480, 61440):
        store.put("a", residual(value).bfloat16(), keep=2)
    assert torch.equal(store.take("a", coefficients=(0.5,)), residual(81920).bfloat16())


@pytest.mark.parametrize("coefficients", [(), (0.5,), (0.5, -0.25)], ids=len)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_what_a_forecast_leaves_is_measured(coefficients, dtype):
    store, dice = ResidualStore(storage_dtype=dtype), torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 5, 3, generator=dice) for _ in range(4)]
    for row in rows[:3]:
        store.put("a", row, keep=3)
    kept = [store.take("a", rows[0])]
    for keep in (1, 2):  # as they are given back
        other = ResidualStore(storage_dtype=dtype)
        other.put("a", rows[2 - keep])
        kept.append(other.take("a", rows[0]))
    guess = kept[0] + sum(c * (kept[i] - kept[i + 1]) for i, c in enumerate(coefficients))
    left, length = (rows[3] - guess).norm(), rows[3].norm()
    torch.testing.assert_close(store.compared("a", rows[3], coefficients), torch.stack([left, length]))
    torch.testing.assert_close(store.error("a", rows[3], coefficients), left / length)
    assert store.compared("b", rows[3], coefficients) is None
    assert store.error("b", rows[3], coefficients) is None
    assert store.compared("a", rows[3][:1], coefficients) is None
    assert store.compared("a", rows[3].double(), coefficients) is None
    store.trim("a", len(coefficients))
    assert store.compared("a", rows[3], coefficients) is None


def test_of_many_tokens_about_a_thousand_are_compared():
    for tokens, stride in ((1024, 1), (2047, 1), (2048, 2), (5000, 4)):
        assert _arithmetic.some_tokens(torch.empty(2, tokens, 3), -1, 1024) == (
            slice(None),
            slice(None, None, stride),
        )
        row = torch.full((1, tokens, 1), 3.0)
        row[:, ::stride] = 1.0
        store, guess = ResidualStore(), row.clone()
        guess[:, ::stride] = 0.0  # right where nobody looks
        store.put("a", guess)
        left, length = store.compared("a", row, ()).tolist()
        assert left == length == pytest.approx(len(range(0, tokens, stride)) ** 0.5)
        assert store.error("a", row, ()).item() == pytest.approx(1.0)
    assert _arithmetic.some_tokens(torch.empty(2, 3, 8, 4096), 1, 1024) == (*(slice(None),) * 3, slice(None, None, 4))
    assert _arithmetic.some_tokens(torch.empty(2, 4096, 8), 2, 1024) == (slice(None), slice(None, None, 4))
    assert _arithmetic.some_tokens(torch.empty(4096, 8), -1, 1024) == (slice(None, None, 4),)
    assert _arithmetic.some_tokens(torch.empty(4096), -1, 1024) == (slice(None, None, 1),)
    assert _arithmetic.some_tokens(torch.empty(()), -1, 1024) == ()
    store = ResidualStore()
    store.put("a", torch.tensor(1.0))
    assert store.compared("a", torch.tensor(1.0), ()) is None


def test_without_offload_a_residual_stays_on_its_device():
    store, row = ResidualStore(), torch.ones(1, 2, 3, device="meta")  # from which nothing can be copied
    store.put("a", row, keep=2)
    assert store.take("a", row).device.type == "meta"
    assert not store.away
    store.bring({"a": 1})
    assert (store.nbytes, store.near_nbytes) == (BYTES, 0)


def test_losses_are_those_of_the_number_type():
    store = ResidualStore(storage_dtype=torch.bfloat16)
    row = residual(1.0)
    row[0, 0, 0] = 1 + 2**-9  # bfloat16 holds 1
    store.put("a", row)
    (loss,) = store.losses
    torch.testing.assert_close(loss, torch.tensor(2**-9) / row.norm())
    store.put("a", torch.zeros(1, 2, 3))
    assert store.losses[1].item() == 0
    store = ResidualStore(storage_dtype=torch.float8_e4m3fn)
    store.put("a", torch.zeros(1, 2, 3))
    assert torch.equal(store.take("a"), torch.zeros(1, 2, 3))
    assert store.losses[0].item() == 0
    store = ResidualStore(storage_dtype=torch.float32)
    store.put("a", row)
    assert store.losses == []


def test_eight_bits_hold_what_they_can_exactly():
    store, row = ResidualStore(storage_dtype=torch.float8_e4m3fn), torch.tensor([[448.0, 0.5, -3.5, 1.25, 2**-9]])
    for scale in (1.0, 2.0**-20, 2.0**20):
        store.put("a", row * scale)
        assert torch.equal(store.take("a"), row * scale)
        store.bring({})
        assert torch.equal(store.take("a", row), row * scale)


def test_what_is_not_finite_as_it_would_be_kept_is_refused():
    huge = residual(1e30)
    for dtype, finite in ((None, True), (torch.bfloat16, True), (torch.float16, False), (torch.float8_e4m3fn, True)):
        store = ResidualStore(storage_dtype=dtype)
        assert store.finite(huge) is finite
        assert not store.finite(huge * float("nan"))
        assert not store.finite(huge * float("inf"))
        store.put("a", huge)
        assert store.missing("a") is (None if finite else Decision.NOT_FINITE)
    assert store.finite(huge.to("meta") * float("nan")), "the host would have to wait"
