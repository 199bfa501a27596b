"""Residuals in main memory that come back ahead of the skip. The device is played by main memory, copies are noted."""

import itertools

import pytest

import magpolicy
from magpolicy import Decision, Schedule
from magpolicy.adapter import CallDecision

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from magpolicy_torch import ResidualStore, Run, run_step  # noqa: E402
from magpolicy_torch.device._accelerator import OutOfMemory  # noqa: E402
from magpolicy_torch.device._offload import Copy  # noqa: E402
from magpolicy_torch.host._run_step import _stores  # noqa: E402
from magpolicy_torch.residuals import _arithmetic  # noqa: E402

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


def test_as_many_come_as_are_wanted_the_newest_first_and_the_others_leave():
    copier = Noting()
    store = ResidualStore("cpu", copier=copier)
    for step in range(3):
        store.put("a", draw(step), keep=3, near=step == 0)
    store.put("b", draw(9))
    assert (copier.since(), store.near_nbytes, store.nbytes) == (["away"] * 4, SIZE, 4 * SIZE)
    for wanted, back, here in (
        ({"a": 2}, 2, 2),
        ({"a": 3, "b": 0}, 1, 3),
        ({"b": 1, "a": 1}, 1, 2),
        ({"a": 4}, 0, 1),
        ({}, 0, 0),
    ):
        store.bring(wanted)
        assert (copier.since(), store.near_nbytes) == (["back"] * back, here * SIZE)
    assert store.away
    store.put("a", draw(3), keep=3, near=True)
    store.refuse("a", keep=3)
    copier.since()
    store.bring({"a": 2})
    assert copier.since() == [], "without the newest no forecast is made"
    store.bring({})
    assert store.near_nbytes == 0, "of what stands behind one that is not finite too"


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


@pytest.mark.parametrize("bad", [0, 1])
def test_of_a_forecast_that_will_be_held_no_older_residual_comes(bad):
    copier = Noting()
    store = ResidualStore("cpu", copier=copier)
    for step in range(3):
        store.put("a", draw(step) / (step != bad), keep=3)
    copier.since()
    store.bring({"a": 3})
    assert copier.since() == ["back"]
    assert torch.equal(store.take("a", draw(2), (0.5, 0.1)), draw(2))


def test_what_was_never_computed_does_not_come():
    copier = Noting()
    store = ResidualStore("cpu", copier=copier)
    for step in range(2):
        store.put("a", draw(step), keep=3)
    copier.since()
    store.bring({"a": 3})
    assert copier.since() == ["back"]
    assert torch.equal(store.take("a", draw(1), (0.5, 0.1)), draw(1))


def test_an_error_is_measured_alike_with_the_residual_here_and_away():
    store = ResidualStore("cpu", copier=Noting())
    for step in range(2):
        store.put("a", torch.randn(1, 5000, 4, generator=torch.Generator().manual_seed(step)), keep=2)
    new = torch.randn(1, 5000, 4, generator=torch.Generator().manual_seed(2))
    errors = [store.error("a", new, (0.5,))]
    store.bring({"a": 2})
    errors.append(store.error("a", new, (0.5,)))
    assert errors[0] == errors[1]


def test_a_device_that_is_full_is_asked_again_by_the_skip():
    class Full(Noting):
        def back(self, copy, device):
            super().back(copy, device)
            raise OutOfMemory

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


def test_a_skip_that_fails_leaves_nothing_on_the_device(monkeypatch):
    def fail(x, residual):
        raise MemoryError

    with magpolicy.Session(Schedule.from_mask((1, 0))) as session:
        store = _stores[session] = ResidualStore("cpu", copier=Noting())
        run_step(session, draw(0), heavy)
        with monkeypatch.context() as patch:
            patch.setattr(_arithmetic, "apply", fail)
            with pytest.raises(MemoryError):
                run_step(session, draw(1), heavy)
        assert store.near_nbytes == 0
        assert torch.equal(run_step(session, draw(1), heavy), draw(1) + (heavy(draw(0)) - draw(0)))
        assert len(session.trace) == 2


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
    monkeypatch.setattr(CallDecision, "upcoming_skips", lambda self: asked.append(self) or {})
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
        run = handle._run.get().on(handle.stack)
        if copier is not None:
            run.store.copier = run.second.copier = copier
        inner = case.blocks[1]
        hook = [m for m in inner.modules() if isinstance(m, torch.nn.Linear)][-1].register_forward_hook(
            lambda *_: during.append(run.store.near_nbytes + run.second.near_nbytes)
        )
        found = []
        for key in keys:
            for streams in calls:
                with handle.stream(*streams):
                    found.append(key() if callable(key) else case(key, batch=len(streams)))
                after.append(run.store.near_nbytes)
        hook.remove()
        trace = run.session.trace
    assert (run.store.near_nbytes, run.second.near_nbytes) == (0, 0)
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


def test_back_at_a_known_resolution_the_residual_of_the_other_is_let_go_of(plain):
    calls = [0, 1, lambda: plain(2, tokens=4), lambda: plain(3)]
    with torch.no_grad():
        _, during, after, trace = attached(plain, calls, copier=Noting(), schedule=Schedule.from_mask((1, 0, 0, 0, 0)))
    assert [e.decision for e in trace][1:] == [Decision.REUSED, Decision.MISMATCH, Decision.MISMATCH]
    assert during == [0, 0, 0]
    assert after[2] < after[3] == after[0]


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_blocks_in_another_order_compute_with_nothing_on_the_device(plain):
    blocks, x = plain.module.blocks, torch.ones(1, 9, 8)
    during = []
    with magpolicy.attach(plain.module, schedule=Schedule.from_mask((1, 0, 0)), offload="cpu") as handle, handle.run():
        run = handle._run.get().on(handle.stack)
        run.store.copier = Noting()
        blocks[0].inner.register_forward_hook(lambda *_: during.append(run.store.near_nbytes))
        plain.module(x)
        assert run.store.near_nbytes
        plain.module.forward = lambda x: blocks[1](blocks[0](x))  # the host leaves the last block out
        with torch.no_grad():
            plain.module(x)
        del plain.module.forward
        assert run.session.trace[-1].decision is Decision.UNSUPPORTED
        assert during == [0, 0]
        assert run.store.near_nbytes == 0


class Talking(torch.nn.Module):
    """Sound goes through its blocks beside the picture."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.picture, self.sound = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, hidden_states, audio_hidden_states):
            hidden, audio = self.picture(hidden_states), self.sound(audio_hidden_states)
            return hidden_states + audio.mean(1, keepdim=True), audio_hidden_states + hidden.mean(1, keepdim=True)

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([self.Block() for _ in range(3)])

    def forward(self, x, y):
        for block in self.blocks:
            x, y = block(hidden_states=x, audio_hidden_states=y)
        return torch.cat([x, y], dim=1)


def test_the_sound_of_a_video_comes_back_too(kit):
    torch.manual_seed(0)
    net, plan = Talking().eval(), Schedule.from_mask(SECOND["mask"], coefficients=SECOND["coefficients"])
    found, copiers, during = [], [Noting(), None], []
    for copier in copiers:
        with torch.no_grad(), magpolicy.attach(net, schedule=plan, offload="cpu") as handle, handle.run():
            run = handle._run.get().on(handle.stack)
            if copier is not None:
                run.store.copier = run.second.copier = copier
                net.blocks[1].sound.register_forward_hook(lambda *_, run=run: during.append(run.second.near_nbytes))
            found.append([net(kit.noise(key, (1, 9, 8)), kit.noise(key, 1, (1, 4, 8))) for key in range(8)])
            if copier is not None:
                assert (run.store.nbytes, run.second.nbytes) == (0, 0)
            assert handle.report.forecasts == 3
    assert equal(*found)
    assert copiers[0].log.count("back") == 2 * 2 * 2  # in both gaps, two older residuals, of picture and sound
    assert set(during) == {0}


def test_both_stores_of_a_run_copy_in_the_same_way(plain):
    copier = Noting()
    with magpolicy.attach(plain.module, schedule=Schedule.from_mask((1, 0))) as handle, handle.run():
        session = magpolicy.Session(Schedule.from_mask((1, 0)))
        assert Run(session, ResidualStore("cpu", copier=copier)).second.copier is copier


def test_a_run_that_the_safeguard_plans_anew(kit):
    torch.manual_seed(0)
    net, sigmas = kit.Net().eval().requires_grad_(False), [1 - i / 20 for i in range(20)]
    start, end, other = (kit.noise(key, (1, 9, 8)) for key in (1, 2, 9))

    def call(step, sigma, jump):
        return net(sigma * start + (1 - sigma) * end + (3 * other if step >= jump else 0))

    with magpolicy.attach(net, calibrate=True) as handle:
        with handle.run(sigmas=sigmas):
            for step, sigma in enumerate(sigmas):
                call(step, sigma, 20)
        calibration = handle.calibration
    settings = {"calibration": calibration, "speedup": 3.0, "safeguard": True, "offload": "cpu"}
    found, here, during = [], [], []
    for copier in (Noting(), None):
        with magpolicy.attach(net, **settings) as handle, handle.run(sigmas=sigmas):
            run = handle._run.get().on(handle.stack)
            if copier is not None:
                run.store.copier = copier
                hook = net.blocks[1].inner.register_forward_hook(lambda *_, run=run: during.append(run.store.near_nbytes))
            results = []
            for step, sigma in enumerate(sigmas):
                results.append(call(step, sigma, 6))
                here.append(run.store.near_nbytes > 0)
            if copier is not None:
                hook.remove()
            assert run.session.replans
            skips = [entry.decision.skip for entry in run.session.trace]
        found.append(results)
    assert equal(*found)
    assert here[:20] == [*skips[1:], False]
    assert not any(here[20:])
    assert set(during) == {0}


def test_a_model_that_raises_leaves_nothing_on_the_device(plain):
    def fail():
        raise KeyError("the model")

    with magpolicy.attach(plain.module, schedule=Schedule.from_mask((1, 0, 0, 0)), offload="cpu") as handle, handle.run():
        run = handle._run.get().on(handle.stack)
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
