"""Residuals in main memory that come back ahead of the skip. The device is played by main memory, copies are noted."""

import itertools

import pytest

import magpolicy
from magpolicy import Decision, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import ResidualStore, _offload, run_step  # noqa: E402
from magpolicy_torch._offload import Copy  # noqa: E402
from magpolicy_torch._step import _stores  # noqa: E402

SIZE = 2 * 3 * 4 * 4  # bytes of one residual of run_step's here
SECOND = {"mask": (1, 1, 1, 0, 0, 1, 0, 1), "coefficients": (0, 0, 0, (0.6, 0.3), (0.8, -0.2), 0, (0.5, 0.1), 0)}


class Noting:
    """A copier for a device that is main memory: what is kept and what is brought back are tensors of their own."""

    def __init__(self):
        self.log = []
        self.here = []

    def remote(self, device):
        return device.type == "cpu"

    def away(self, tensor):
        self.log.append("away")
        return Copy(tensor.clone())

    def back(self, copy, device):
        self.log.append("back")
        found = Copy(copy.data.clone())
        self.here.append(found.data.data_ptr())
        return found

    def since(self):
        """What was done since last asked."""
        log, self.log = self.log, []
        return log


def draw(step, batch=2):
    return torch.randn(batch, 3, 4, generator=torch.Generator().manual_seed(step))


def heavy(x):
    return x * x


def following(session, copier, calls=None):
    """Results of ``run_step``, and per call what was copied, what was on the device while it computed and what after it."""
    store = _stores[session] = ResidualStore("cpu", copier=copier)
    results, copies, during, after = [], [], [], []

    def fn(x):
        during.append(store.near_nbytes)
        return heavy(x)

    for step in range(session.steps):
        for stream in calls or ["single"]:
            results.append(run_step(session, draw(step), fn, stream=stream))
            copies.append(copier.since())
            after.append(store.near_nbytes // SIZE)
    return results, copies, during, after


def without(session, calls=None):
    return [run_step(session, draw(step), heavy, stream=s) for step in range(session.steps) for s in calls or ["single"]]


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_what_the_next_evaluation_reuses_stays_and_is_not_copied_back():
    plan = Schedule.from_mask((1, 0, 0, 1, 1, 0, 1))
    with magpolicy.Session(plan) as session:
        results, copies, during, after = following(session, Noting())
    assert copies == [["away"], [], [], [], ["away"], [], []]  # the fourth is of no use
    assert after == [1, 1, 0, 0, 1, 0, 0]
    assert during == [0, 0, 0, 0]
    with magpolicy.Session(plan) as session:
        assert equal(results, without(session))


def test_older_residuals_come_back_once_a_gap_and_leave_before_the_next_computed_step():
    plan = Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    with magpolicy.Session(plan) as session:
        results, copies, during, after = following(session, Noting())
    two = ["away", "back", "back"]
    assert copies == [["away"], ["away"], two, [], [], two, [], []]
    assert after == [0, 0, 3, 3, 0, 3, 0, 0]
    assert during == [0] * 5
    with magpolicy.Session(plan) as session:
        assert equal(results, without(session))


def test_the_copy_that_came_back_is_what_is_taken():
    copier = Noting()
    store, residual = ResidualStore("cpu", copier=copier), draw(0)
    store.put("a", residual)
    assert store.take("a", residual).data_ptr() == store._entries["a"][0].data.data_ptr()
    store.bring({"a": 1})
    store.bring({"a": 1, "b": 3})
    assert copier.since() == ["away", "back"]
    assert store.take("a", residual).data_ptr() == copier.here[0]
    assert torch.equal(store.take("a", residual), residual)
    assert (store.nbytes, store.near_nbytes) == (SIZE, SIZE)
    store.bring({})
    assert (store.nbytes, store.near_nbytes) == (SIZE, 0)
    assert store.take("a", residual).data_ptr() != copier.here[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_narrow_residuals_come_back_narrow_and_are_widened_on_the_device(dtype):
    stores = [ResidualStore("cpu", dtype, copier=Noting()), ResidualStore("cpu", dtype), ResidualStore(None, dtype)]
    for store in stores:
        for step in range(3):
            store.put("a", draw(step), keep=3)
    stores[0].bring({"a": 3})
    assert stores[0].near_nbytes == 3 * (SIZE // 4) * dtype.itemsize
    found = [store.take("a", draw(0), (0.5, 0.2)) for store in stores]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_where_an_older_residual_is_of_no_use_the_newest_alone_comes():
    copier = Noting()
    store = ResidualStore("cpu", copier=copier)
    store.put("a", draw(0) / 0, keep=2)
    store.put("a", draw(1), keep=2)
    store.bring({"a": 2})
    assert copier.since() == ["away", "back"]
    assert torch.equal(store.take("a", draw(1), (0.5,)), draw(1))
    assert store.held("a") is Decision.NOT_FINITE


def test_a_device_that_is_full_is_asked_again_by_the_skip():
    class Full(Noting):
        def back(self, copy, device):
            super().back(copy, device)
            raise torch.cuda.OutOfMemoryError

    plan = Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    with magpolicy.Session(plan) as session:
        results, copies, *_ = following(session, Full())
    assert copies[2] == ["away", "back", "back"]
    with magpolicy.Session(plan) as session:
        assert equal(results, without(session))


def test_streams_called_one_after_the_other():
    """The first one's residual must not wait on the device while the second one computes; then both are there."""
    plan = Schedule.from_mask((1, 0, 0, 1, 0))
    calls = ["cond", "uncond"]
    with magpolicy.Session(plan) as session:
        results, copies, during, after = following(session, Noting(), calls)
    assert during == [0] * 4
    assert copies == [["away"], ["away", "back"], [], [], [], [], ["away"], ["away", "back"], [], []]
    # In the very first call nobody knows yet of a second stream; of a stream that is over nothing is there.
    assert after == [1, 2, 2, 2, 1, 0, 0, 2, 1, 0]
    with magpolicy.Session(plan) as session:
        assert equal(results, without(session, calls))


def test_streams_of_one_call_come_back_only_if_the_call_skips():
    rows = {"cond": (1, 1, 0, 0, 1, 0), "uncond": (1, 1, 0, 1, 1, 0)}
    with magpolicy.Session(Schedule.from_mask(rows)) as session:
        store = _stores[session] = ResidualStore("cpu", copier=Noting())
        here, skips = [], []
        for step in range(6):
            run_step(session, draw(step), heavy, stream=["cond", "uncond"])
            here.append(store.near_nbytes // (SIZE // 2))
            skips.append(session.trace[-1].decision.skip)
    assert skips == [False, False, True, False, False, True]
    assert here == [0, 2, 0, 0, 2, 0]


def test_the_rule_is_foreseen_too():
    settings = {"threshold": 0.05, "max_skips": 2, "retention": 0.2, "forecast": "linear"}
    ratios = [1.0, 1.01, 0.99, 1.02, 1.0, 1.01, 1.0, 0.98, 1.0, 1.01]
    with magpolicy.Session(ratios, **settings) as session:
        results, copies, during, after = following(session, Noting())
        skips = [entry.decision.skip for entry in session.trace]
    assert 3 <= sum(skips) <= 7
    for skip, here in zip(skips[1:], after, strict=False):
        assert here == (2 if skip else 0)
    assert sum(copy.count("back") for copy in copies) == sum(b and not a for a, b in itertools.pairwise(skips))
    assert set(during) == {0}
    with magpolicy.Session(ratios, **settings) as session:
        assert equal(results, without(session))


def test_an_exception_an_early_end_and_another_shape_leave_nothing_on_the_device():
    with magpolicy.Session(Schedule.from_mask((1, 0, 1, 0, 0, 1))) as session:
        store = _stores[session] = ResidualStore("cpu", copier=Noting())
        seen = []

        def fn(x):
            seen.append(store.near_nbytes)
            return heavy(x)

        run_step(session, draw(0), fn)
        assert store.near_nbytes == SIZE
        with pytest.raises(TypeError):
            run_step(session, draw(0)[..., :1], lambda x: None + x)  # of another shape, so it computes, and that fails
        assert store.near_nbytes == 0
        run_step(session, draw(1), fn)
        assert session.trace[-1].decision is Decision.NO_RESIDUAL, "it made room for the call that failed"
        run_step(session, draw(2), fn)
        assert store.near_nbytes == SIZE
        run_step(session, draw(3)[:1], fn)
        assert session.trace[-1].decision is Decision.MISMATCH
        assert seen == [0, 0, 0, 0]
        assert store.near_nbytes == SIZE // 2
    assert (store.near_nbytes, store.nbytes) == (0, 0)


def test_a_plan_that_is_left_is_followed_no_longer():
    with magpolicy.Session(Schedule.from_mask((1, 0, 0, 0, 1))) as session:
        store = _stores[session] = ResidualStore("cpu", copier=Noting())
        run_step(session, draw(0), heavy)
        assert store.near_nbytes == SIZE
        session.follow(Schedule.from_mask((1, 1, 1, 0, 1)))
        during = []
        run_step(session, draw(1), lambda x: during.append(store.near_nbytes) or heavy(x))
        assert during == [0]
        assert store.near_nbytes == 0, "the new plan computes next"


def test_without_a_remote_device_nothing_is_copied_nor_foreseen(monkeypatch):
    asked = []
    monkeypatch.setattr(magpolicy.Session, "foresees", lambda self: asked.append(self) or {})
    for offload in (None, "cpu"):
        with magpolicy.Session(Schedule.from_mask((1, 0, 0))) as session:
            for step in range(3):
                run_step(session, draw(step), heavy, offload=offload)
                assert (_stores[session].near_nbytes, _stores[session].away) == (0, False)
    assert asked == []


# Models


def attached(case, keys, calls=(("single",),), copier=None, **settings):
    """Results, what was on the device while blocks ran, and after each call."""
    during, after = [], []
    with magpolicy.attach(case.module, offload="cpu", **settings) as handle, handle.run():
        run = handle._run.get()
        if copier is not None:
            run.store.copier = run.also.copier = copier
        inner = case.blocks[1]
        hook = [m for m in inner.modules() if isinstance(m, torch.nn.Linear)][-1].register_forward_hook(
            lambda *_: during.append(run.store.near_nbytes + run.also.near_nbytes)
        )
        found = []
        for key in keys:
            for streams in calls:
                with handle.stream(*streams):
                    found.append(key() if callable(key) else case(key, batch=len(streams)))
                after.append(run.store.near_nbytes)
        hook.remove()
        trace = run.session.trace
    assert (run.store.near_nbytes, run.also.near_nbytes) == (0, 0)
    return found, during, after, trace


@pytest.mark.parametrize("calls", [(("cond",),), (("cond", "uncond"),), (("cond",), ("uncond",))], ids=str)
def test_models_give_the_same_to_the_bit(case, calls):
    plan = Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    copier = Noting()
    with torch.no_grad():
        found, during, after, _ = attached(case, range(8), calls, copier, schedule=plan)
        expected, *_ = attached(case, range(8), calls, schedule=plan)
    assert equal(found, expected)
    assert set(during) == {0}
    assert all(after[place] for place in (3 * len(calls) - 1, 6 * len(calls) - 1))
    assert copier.log.count("back") >= 2 * 2


def test_a_models_copies_are_those_of_the_plan_and_no_more(plain):
    plan = Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    copier = Noting()
    with torch.no_grad():
        _, _, after, _ = attached(plain, range(8), copier=copier, schedule=plan)
    two = ["away", "back", "back"]
    assert copier.log == ["away", "away", *two, *two]
    size = 9 * 8 * 4
    assert after == [size * n for n in (0, 0, 3, 3, 0, 3, 0, 0)]


def test_a_change_of_resolution_computes_with_nothing_on_the_device(case):
    calls = [0, 1, lambda: case(2, tokens=4), lambda: case(3, tokens=4)]
    with torch.no_grad():
        _, during, after, trace = attached(case, calls, copier=Noting(), schedule=Schedule.from_mask((1, 0, 0, 0)))
    assert [e.decision for e in trace][1:] == [Decision.REUSED, Decision.MISMATCH, Decision.REUSED]
    assert during == [0, 0]
    assert after[1] > after[2] > after[3] == 0


def test_a_model_that_raises_leaves_nothing_on_the_device(plain):
    def fail():
        raise KeyError("the model")

    with magpolicy.attach(plain.module, schedule=Schedule.from_mask((1, 0, 0, 0)), offload="cpu") as handle, handle.run():
        run = handle._run.get()
        run.store.copier = Noting()
        plain(0), plain(1)
        assert run.store.near_nbytes
        hook = plain.module.register_forward_pre_hook(lambda *_: fail())
        with pytest.raises(KeyError):
            plain(2)
        hook.remove()
        assert run.store.near_nbytes == 0
        assert torch.equal(plain(2), plain(2))
        assert [e.decision.skip for e in run.session.trace] == [False, True, True, True]


def test_the_copier_of_cuda_serves_cuda_alone():
    copier = ResidualStore("cpu").copier
    assert isinstance(copier, _offload.Cuda)
    assert [copier.remote(torch.device(name)) for name in ("cuda:0", "cpu", "meta")] == [True, False, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_an_accelerator_the_results_are_those_without_offloading():
    plan = Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    found = []
    for offload in ("cpu", None):
        with magpolicy.Session(plan) as session:
            x = [draw(step).cuda() for step in range(8)]
            found.append([run_step(session, t, heavy, offload=offload) for t in x])
            assert _stores[session].near_nbytes == 0
    assert equal(*found)
