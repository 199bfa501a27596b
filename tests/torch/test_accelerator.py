"""What is particular to an accelerator: memory of its own, streams, events and generators. On whichever torch drives."""

import gc
import threading
import time

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from magpolicy_torch import ResidualStore, run_step  # noqa: E402
from magpolicy_torch.device import _accelerator  # noqa: E402
from magpolicy_torch.device._offload import Accelerator  # noqa: E402
from magpolicy_torch.device._timer import Timer  # noqa: E402
from magpolicy_torch.host._run_step import _stores  # noqa: E402

DEVICE = torch.device(_accelerator.default(), 0)
absent = pytest.mark.skipif(DEVICE.type == "cpu", reason="torch drives no accelerator here")
memory_told = hasattr(getattr(torch, "accelerator", None), "memory_allocated")

PLAN = Schedule.from_mask((1, 1, 1, 0, 0, 1, 0, 1), coefficients=(0, 0, 0, (0.6, 0.3), (0.8, -0.2), 0, (0.5, 0.1), 0))
SHAPE = 2, 256, 64
SIZE = 2 * 256 * 64 * 4  # bytes of one residual
WAITS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "item"}


def draw(key, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(key)).to(DEVICE)


def lag(side=900):
    """Give the device some time's work."""
    x = torch.ones(side, side, device=DEVICE)
    for _ in range(3):
        x = x @ x * 1e-3
    return x[0, 0] * 0


def heavy(x):
    return x * x + lag()


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


def stepped(plan=PLAN, fn=heavy, **settings):
    xs = [draw(step) for step in range(plan.steps)]
    with magpolicy.Session(plan) as session:
        return [run_step(session, x, fn, **settings) for x in xs]


def on_one(test):
    return pytest.mark.gpu(absent(test))


class Watching(TorchDispatchMode):
    """Notes copies, what is lent to another stream, and what has the host wait for the device: a look at a value, and a copy
    that is not queued or not of pinned memory."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies, self.lent = [], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, name = func(*args, **(kwargs or {})), func._schema.name.removeprefix("aten::")
        if name in WAITS:
            self.waits.append(name)
        self.lent += name == "record_stream"
        pair = {"_to_copy": (result, args[0]), "copy_": args[:2]}.get(name, ())
        host = [tensor for tensor in pair if tensor.device.type == "cpu"]
        if len(host) == 1:
            self.copies += 1
            queued = (kwargs or {}).get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
            if not queued or not host[0].is_pinned() or not host[0].is_contiguous():
                self.waits.append(name)
        return result


# Whether or not there is one


@pytest.fixture
def afresh():
    """Forgets which accelerator there is, and again at the end."""
    forget = _accelerator.kind.cache_clear
    forget()
    yield forget
    forget()


@pytest.mark.skipif(not hasattr(torch, "accelerator"), reason="torch < 2.6 has no one form for all")
def test_what_counts_as_an_accelerator(monkeypatch, afresh):
    copier = Accelerator()
    monkeypatch.setattr(_accelerator, "_queues", lambda device: True)
    for name in ("cuda", "xpu", "mps", None):
        afresh()
        found = None if name is None else torch.device(name)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda found=found: found)
        served = [device for device in ("cuda:1", "xpu:0", "mps:0", "meta", "cpu") if copier.remote(torch.device(device))]
        assert served == [device for device in ("cuda:1", "xpu:0") if name is not None and device.startswith(name)]


def test_before_torch_had_one_form_for_all_cuda_is_served(monkeypatch, afresh):
    monkeypatch.setattr(_accelerator, "_COMMON", False)
    monkeypatch.setattr(_accelerator, "_queues", lambda device: True)
    assert _accelerator.kind() == "cuda"
    assert _accelerator.awake() == torch.cuda.is_initialized()
    assert _accelerator.default() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert Accelerator().remote(torch.device("cuda:0"))


def test_where_no_memory_can_be_pinned_the_copy_is_a_plain_one(monkeypatch):
    def empty(*args, pin_memory=False, made=torch.empty, **kwargs):
        if pin_memory:
            raise RuntimeError("out of memory that can be pinned")
        return made(*args, **kwargs)

    x = draw(1)
    monkeypatch.setattr(torch, "empty", empty)
    copy = Accelerator().away(x)
    assert copy.data.device.type == "cpu"
    assert copy.done is None
    assert equal([copy.data], [x])
    if DEVICE.type != "cpu":
        assert equal([Accelerator().back(copy, DEVICE).on(DEVICE)], [x])


def test_a_device_without_streams_or_events_is_copied_from_plainly_and_timed_by_the_host(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Backend doesn't support this.")

    monkeypatch.setattr(_accelerator, "kind", lambda: "cpu")  # it plays the accelerator
    monkeypatch.setattr(_accelerator, "current_stream", fail)
    monkeypatch.setattr(torch, "Event", fail)
    _accelerator._queues.cache_clear()
    monkeypatch.setattr(_accelerator, "awake", lambda: True)
    lap = Timer()
    x = torch.ones(4)
    store = ResidualStore("cpu")
    assert not store.copier.remote(x.device)
    store.put("a", x, near=True)
    store.bring({"a": 1})
    assert torch.equal(store.take("a", x), x)
    lap.stop()
    assert lap.seconds > 0
    _accelerator._queues.cache_clear()


def test_what_is_drawn_inside_is_drawn_again_outside():
    devices = [torch.device("cpu"), torch.device("meta"), DEVICE]
    with _accelerator.forked(devices):
        first = [torch.rand(4), torch.rand(4, device=DEVICE)]
    assert equal(first, [torch.rand(4), torch.rand(4, device=DEVICE)])


# On one


@on_one
@pytest.mark.parametrize("storage_dtype", [None, torch.bfloat16], ids=str)
def test_offloaded_results_are_the_same_to_the_bit(storage_dtype):
    settings = {"storage_dtype": storage_dtype}
    assert equal(stepped(offload="cpu", **settings), stepped(**settings))


@on_one
def test_where_residuals_are():
    """In pinned memory; on the device only from when a skip is next until a step computes."""
    during, after = [], []
    with magpolicy.Session(PLAN) as session:
        store = _stores[session] = ResidualStore("cpu")
        for step in range(PLAN.steps):
            run_step(session, draw(step), lambda x: during.append(store.near_nbytes) or heavy(x))
            after.append(store.near_nbytes // SIZE)
            for entry in store._entries.get("single", ()):
                assert entry.kept.data.is_pinned()
                assert entry.near is None or entry.near.data.device == DEVICE
    assert during == [0] * 5
    assert after == [0, 0, 3, 3, 0, 3, 0, 0]


@on_one
@pytest.mark.skipif(not memory_told, reason="torch < 2.9 does not tell of all devices what is allocated")
def test_a_step_computes_with_as_little_memory_as_without_residuals():
    held = []
    for plan, offload in [(Schedule.from_mask((1,) * 8), None), (PLAN, "cpu"), (PLAN, None)]:
        during = []

        def fn(x, during=during):
            gc.collect()
            torch.accelerator.synchronize(DEVICE)
            during.append(torch.accelerator.memory_allocated(DEVICE))
            return x * x

        with magpolicy.Session(plan) as session:
            for step in range(plan.steps):
                run_step(session, draw(step), fn, offload=offload)
        held.append(during)
    bare = held[0][0]
    assert held[:2] == [[bare] * 8, [bare] * 5]
    assert held[2][2] >= bare + 2 * SIZE, "the measurement would have seen them"


@on_one
def test_the_host_waits_for_no_copy():
    xs = [draw(step) for step in range(8)]
    with magpolicy.Session(PLAN) as session, Watching() as watching:
        for x in xs:
            run_step(session, x, heavy, offload="cpu")
    assert not watching.waits
    assert watching.copies == 5 + 2 * 2 - 1  # the last one computed is not kept; two older ones come back in either gap
    if _accelerator.beside(DEVICE) != _accelerator.current_stream(DEVICE):
        assert watching.lent >= 3 * 3, "of three skips, each reads three residuals"


@on_one
def test_a_model_forecasts_as_by_hand_and_the_host_does_not_wait(kit):
    torch.manual_seed(0)
    net = kit.Net().eval().requires_grad_(False).to(DEVICE)
    xs = [draw(key, (1, 9, 8)) for key in range(8)]
    found = []
    for offload in ("cpu", None):
        with torch.no_grad(), magpolicy.attach(net, schedule=PLAN, offload=offload) as handle, handle.run():
            run = handle._run.get().on(handle.stack)
            found.append([net(x) for x in xs[:5]])  # the first skip is made in two ways and compared
            with Watching() as watching:
                found[-1] += [net(x) for x in xs[5:]]
            assert not watching.waits
            assert (run.store.near_nbytes, run.second.near_nbytes) == (0, 0)
        assert handle.report.forecasts == 3
    assert equal(*found)
    kept, expected = [], []
    with torch.no_grad():
        for x, computes, (c1, c2) in zip(xs, PLAN.mask, [c or (0, 0) for c in map(_pair, range(8))], strict=True):
            if computes:
                after = x
                for block in net.blocks:
                    after = block(after)
                kept = [after - x, *kept[:2]]
            else:
                after = x + kept[0] + c1 * (kept[0] - kept[1]) + c2 * (kept[1] - kept[2])
            expected.append(after * 2)
    for a, b in zip(found[0], expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-5)


def _pair(step):
    return {3: (0.6, 0.3), 4: (0.8, -0.2), 6: (0.5, 0.1)}.get(step)


@on_one
@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "autocast"])
def test_a_model_of_diffusers(cases, narrow):
    pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
    case = cases["Flux"]()
    net = case.module.to(DEVICE)
    net.set_attention_backend("_native_math")
    ids = [torch.arange(9)[:, None].repeat(1, 3).float().to(DEVICE), torch.zeros(5, 3).to(DEVICE)]

    def call(key):
        return net(
            hidden_states=draw(key, (1, 9, 4)), encoder_hidden_states=draw(90, (1, 5, 8)),
            pooled_projections=draw(91, (1, 8)), timestep=torch.full((1,), 0.5).to(DEVICE),
            img_ids=ids[0], txt_ids=ids[1], return_dict=False,
        )[0]  # fmt: skip

    found = []
    with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=narrow):
        for offload in ("cpu", None):
            with magpolicy.attach(net, schedule=PLAN, offload=offload) as handle, handle.run():
                found.append([call(key) for key in range(6)])
                case.blocks_run()
                found[-1] += [call(6)]
                assert case.blocks_run() == []
                found[-1] += [call(7)]
            assert handle.report.strip == PLAN.strip
    assert equal(*found)


@on_one
@pytest.mark.parametrize("index", [0, 1])
def test_a_report_tells_the_time_of_the_device_that_the_model_is_on(index):
    if index >= getattr(torch, DEVICE.type).device_count():
        pytest.skip("there is one accelerator")
    device = torch.device(DEVICE.type, index)

    class Slow(torch.nn.Module):
        def forward(self, x):
            work = torch.ones(900, 900, device=x.device)
            for _ in range(3):
                work = work @ work * 1e-3
            return x * 1.5 + work[0, 0] * 0

    net = torch.nn.Sequential(Slow(), Slow()).to(device)
    x = draw(0).to(device)
    assert _accelerator.awake()
    planned = {"schedule": Schedule.from_mask((1, 0, 1, 0)), "blocks": list(net)}
    with torch.no_grad(), magpolicy.attach(net, **planned) as handle, handle.run():
        net(x), net(x)
        torch.accelerator.synchronize(device)
        started = time.perf_counter()
        net(x)
        torch.accelerator.synchronize(device)
        took = time.perf_counter() - started
        net(x)
    laps = [call._lap for call in handle.report.calls]
    assert {event.device for lap in laps for event in (lap._first, lap._last)} == {device}
    times = [lap.seconds for lap in laps]
    assert 0.3 * took < times[2] < 1.1 * took
    assert 0 < times[3] < times[2]


@on_one
def test_what_a_skip_still_reads_is_not_overwritten_by_the_next_copy():
    store, a, b = ResidualStore("cpu"), draw(1), draw(2)
    store.put("a", a)
    store.put("b", b)
    for _ in range(5):
        store.bring({"a": 1})
        late = lag(1200)
        sum_ = store.take("a", a) + late
        store.bring({})
        store.bring({"b": 1})
        assert torch.equal(sum_.cpu(), a.cpu())
        assert torch.equal(store.take("b", b).cpu(), b.cpu())
        store.bring({})


@on_one
def test_a_copy_waits_for_the_work_before_it():
    """There and back while the device has not even made the residual yet."""
    store, like = ResidualStore("cpu"), draw(0)
    for key in range(1, 6):
        store.put("a", draw(key) + lag(1200))
        store.bring({"a": 1})
        assert torch.equal(store.take("a", like).cpu(), draw(key).cpu())


@on_one
def test_work_waits_for_the_copy_before_it():
    """The stream of the copies lags behind."""
    store, residual = ResidualStore("cpu"), draw(1)
    store.put("a", residual)
    for _ in range(5):
        with _accelerator.using(_accelerator.beside(DEVICE)):
            late = lag(1200)
        store.bring({"a": 1})
        assert torch.equal((store.take("a", residual) * 2).cpu(), (residual * 2).cpu())
        store.bring({})
        assert late.device == DEVICE


@on_one
def test_threads_go_back_to_streams_of_their_own():
    beside, seen = _accelerator.beside(DEVICE), []
    entered, left = threading.Event(), threading.Event()

    def other():
        own = torch.Stream(device=DEVICE)
        with own:
            with _accelerator.using(beside):
                entered.set()
                left.wait(10)
            seen.append(_accelerator.current_stream(DEVICE) == own)

    usual, thread = _accelerator.current_stream(DEVICE), threading.Thread(target=other)
    with _accelerator.using(beside):
        thread.start()
        assert entered.wait(10)
    seen.append(_accelerator.current_stream(DEVICE) == usual)
    left.set()
    thread.join()
    assert seen == [True, True]


@on_one
def test_the_safeguard_compares_what_is_kept_even_while_it_is_on_its_way():
    shape, errors = (1, 5000, 16), []
    for offload in ("cpu", None):
        store = ResidualStore(offload)
        store.put("a", draw(1, shape))
        new = draw(3, shape)
        store.put("a", draw(2, shape) + lag(1200), keep=2)
        with Watching() as watching:
            errors.append(store.error("a", new, (0.5,)))
        assert not watching.waits
    assert errors[0].device == DEVICE
    assert equal(*[[error] for error in errors])


@on_one
def test_threads_copy_beside_one_another():
    usual, wrong = _accelerator.current_stream(DEVICE), []

    def work(key):
        store, residual = ResidualStore("cpu"), draw(key)
        expected = residual.cpu()
        for _ in range(50):
            store.put("a", residual)
            store.bring({"a": 1})
            if not torch.equal(store.take("a", residual).cpu(), expected) or _accelerator.current_stream(DEVICE) != usual:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(key,)) for key in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
