"""The zoo itself: tiny models that run, whose inputs matter, and whose stack is where the case says."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402
from zoo._bare import watch  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

pytestmark = pytest.mark.sampled

with_stack = pytest.mark.parametrize("case", [c for c in CASES.values() if c.blocks], ids=lambda c: c.cls)


def differ(one, other):
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_weights_are_the_same_whatever_memory_held(monkeypatch):
    """Some classes leave weights as uninitialised memory."""

    def made(**held):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "empty", functools.partial(full, **held))
            return [case.make().state_dict() for case in CASES.values()]

    def full(*shape, fill_value, dtype=None, device=None, **others):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return torch.full(tuple(shape), fill_value, dtype=dtype, device=device)

    for case, zeros, ones in zip(CASES.values(), made(fill_value=0.0), made(fill_value=1.0), strict=True):
        changed = [name for name in zeros if not torch.equal(zeros[name], ones[name])]
        assert not changed, f"{case.cls} leaves {changed} to chance"


@with_stack
def test_every_input_matters(case):
    model = case.make()
    plain = case.call(model, Draw())
    assert all(t.isfinite().all() for t in plain)
    assert not differ(plain, case.call(model, Draw()))
    assert differ(plain, case.call(model, Draw((Row(noise=1),))))
    assert differ(plain, case.call(model, Draw((Row(text=1),)))) == case.conditioned
    assert differ(plain, case.call(model, Draw(level=0.3))) == case.conditioned
    assert (plain[0].shape != case.call(model, Draw(size=12))[0].shape) == case.sized
    for extra in case.extras:
        assert differ(plain, case.call(model, Draw(), extra)), extra


@with_stack
def test_a_batch_is_its_rows(case):
    if not case.batches:
        return
    model = case.make()
    rows = Row(noise=1, text=2), Row(noise=3, text=4)
    both = case.call(model, Draw(rows))
    for index, row in enumerate(rows):
        for whole, alone in zip(both, case.call(model, Draw((row,))), strict=True):
            torch.testing.assert_close(whole[index : index + 1], alone, rtol=1e-4, atol=1e-5)


@with_stack
@pytest.mark.parametrize("size", [8, 12])
def test_the_stack_is_where_the_case_says(case, size):
    model = case.make()
    assert len(case.stack(model)) >= 2
    for extras in ((), *((name,) for name in case.extras)):
        plain = case.call(model, Draw(size=size), *extras)
        outputs, seen = watch(case, model, Draw(size=size), *extras)
        assert not differ(plain, outputs)
        assert seen.order == list(range(len(seen.blocks))), "every block once, in this order"
        same, _ = watch(case, model, Draw(size=size), *extras, replace=seen.left)
        assert not differ(plain, same)
        for index, stream in enumerate(seen.left):  # every stream that leaves the stack is used after it
            other = [*seen.left[:index], stream * 1.5 + 0.1, *seen.left[index + 1 :]]
            assert differ(plain, watch(case, model, Draw(size=size), *extras, replace=other)[0]), index
        assert all(r.abs().max() > 1e-6 for r in seen.residuals), "a residual that is no zero"
