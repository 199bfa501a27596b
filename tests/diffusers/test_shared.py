"""Several handles on one model: each has its own runs, and the last one to go leaves the model as it was."""

import asyncio
import copy
import gc
import threading
import weakref

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

FLUX, IMG = PIPES["FluxPipeline"], PIPES["FluxImg2ImgPipeline"]
MASKS = {"one": (1, 1, 0, 1, 0, 0), "two": (1, 0, 0, 0, 1, 1), "three": (1, 0, 1, 0, 1, 0)}


def schedule(name):
    return {"schedule": Schedule.from_mask(MASKS[name])}


def strip(name):
    return "".join("█" if computes else "·" for computes in MASKS[name])


def run(pipe, way="distilled", seed=0):
    return FLUX.run(pipe, way, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def alone():
    """What each mask gives by itself."""
    found = {}
    for name in MASKS:
        pipe = FLUX.make()
        with magpolicy.attach(pipe, **schedule(name)):
            found[name] = run(pipe)
    found["none"] = run(FLUX.make())
    return found


def second(pipe):
    """Another pipeline around the same transformer, with a scheduler of its own."""
    made = copy.copy(pipe)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    return made


def made():
    """A pipeline that was called once: diffusers has left its own mark on the model."""
    pipe = FLUX.make()
    run(pipe)
    return pipe


def state(module):
    """Every attribute of every module, by identity, and its class; hooks are among them."""
    every = {name: (type(m), {k: id(v) for k, v in m.__dict__.items()}) for name, m in module.named_modules()}
    hooks = {name: [len(v) for k, v in m.__dict__.items() if k.endswith("_hooks")] for name, m in module.named_modules()}
    return every, hooks, list(module.state_dict())


def by_hand(pipe):
    other = FLUX.make()
    other.transformer = pipe.transformer
    return other


WAYS = {"copy.copy": second, "from_pipe": lambda pipe: diffusers.FluxPipeline.from_pipe(pipe), "by hand": by_hand}


@pytest.mark.parametrize("first_to_go", [0, 1])
@pytest.mark.parametrize("derive", WAYS.values(), ids=WAYS.keys())
def test_two_pipelines_on_one_transformer(alone, derive, first_to_go):
    pipe = made()
    pipes = pipe, derive(pipe)
    before, classes = state(pipe.transformer), [type(p).__call__ for p in pipes]
    handles = [magpolicy.attach(p, **schedule(name)) for p, name in zip(pipes, ("one", "two"), strict=True)]
    assert magpolicy.attached(pipe.transformer) == tuple(handles)
    for _ in range(2):
        for p, handle, name in zip(pipes, handles, ("one", "two"), strict=True):
            assert torch.equal(run(p), alone[name])
            assert handle.report.strip == strip(name)
    handles[first_to_go].detach()
    rest = 1 - first_to_go
    assert torch.equal(run(pipes[rest]), alone["one" if rest == 0 else "two"])
    handles[rest].detach()
    assert state(pipe.transformer) == before
    assert [type(p).__call__ for p in pipes] == classes
    assert torch.equal(run(pipe), alone["none"])


@pytest.mark.parametrize("name", ["WanPipeline two experts"])
def test_two_experts_in_two_pipelines(name):
    case = PIPES[name]
    way, pipe = next(iter(case.ways)), case.make()
    other = type(pipe).from_pipe(pipe)
    with magpolicy.attach(pipe, **schedule("one")) as handle:
        expected = case.run(pipe, way, 6)
        with magpolicy.attach(other, **schedule("one")) as further:
            assert torch.equal(case.run(other, way, 6), expected)
            assert torch.equal(case.run(pipe, way, 6), expected)
            assert further.report.strip == handle.report.strip


def test_threads_with_a_copy_each(alone):
    """As a server does it: the scheduler of a pipeline belongs to one call at a time."""
    pipe, found, start = made(), {}, threading.Barrier(len(MASKS))

    def work(name):
        own = second(pipe)
        with magpolicy.attach(own, **schedule(name)) as handle:
            start.wait()
            for _ in range(3):
                found.setdefault(name, []).append((run(own), handle.report.strip))

    before = state(pipe.transformer)
    threads = [threading.Thread(target=work, args=(name,)) for name in MASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in MASKS:
        for result, ran in found[name]:
            assert torch.equal(result, alone[name])
            assert ran == strip(name)
    assert state(pipe.transformer) == before


def test_threads_around_a_forward_that_somebody_has_wrapped(alone):
    """Blocks are patched then while a call lasts, by all threads together."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    pipe, found = made(), {}
    accelerate.dispatch_model(pipe.transformer, {"": "cpu"}, main_device="cpu", force_hooks=True)
    before = state(pipe.transformer)

    def work(name):
        own = second(pipe)
        with magpolicy.attach(own, **schedule(name)):
            found[name] = [run(own) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(name,)) for name in MASKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in MASKS:
        assert all(torch.equal(result, alone[name]) for result in found[name])
    assert state(pipe.transformer) == before


def test_tasks_of_an_event_loop(alone):
    pipe = made()

    async def work(name):
        own = second(pipe)
        with magpolicy.attach(own, **schedule(name)) as handle:
            await asyncio.sleep(0)
            result = await asyncio.to_thread(run, own)
            await asyncio.sleep(0)
            return result, handle.report.strip

    async def every():
        return await asyncio.gather(*map(work, MASKS))

    for name, (result, ran) in zip(MASKS, asyncio.run(every()), strict=True):
        assert torch.equal(result, alone[name])
        assert ran == strip(name)


def test_a_pipeline_that_is_called_within_the_run_of_another(alone):
    pipe = made()
    inner, results = second(pipe), []

    def call_inner(_pipe, step, _timestep, _kwargs):
        if step == 1:
            results.append(run(inner))
        return {}

    with magpolicy.attach(pipe, **schedule("one")) as outer_handle, magpolicy.attach(inner, **schedule("two")) as handle:
        found = FLUX.run(
            pipe, "distilled", 6, generator=torch.Generator().manual_seed(0),
            callback_on_step_end=call_inner, callback_on_step_end_tensor_inputs=[],
        )  # fmt: skip
        assert torch.equal(results[0], alone["two"])
        assert torch.equal(found, alone["one"])
        assert (outer_handle.report.strip, handle.report.strip) == (strip("one"), strip("two"))


@pytest.mark.parametrize("order", ["pipeline first", "model first"])
def test_a_handle_on_the_model_beside_that_of_its_pipeline(alone, order):
    """The pipeline's calls are its own handle's; calls of anybody else are runs of the model's handle."""
    pipe = made()
    before, stranger = state(pipe.transformer), second(pipe)
    targets = [(pipe, schedule("one")), (pipe.transformer, schedule("two") | {"steps": 6})]
    pairs = targets if order == "pipeline first" else targets[::-1]
    handles = {id(target): magpolicy.attach(target, **settings) for target, settings in pairs}
    of_pipe, of_model = (handles[id(target)] for target, _ in targets)
    for _ in range(2):
        assert torch.equal(run(pipe), alone["one"])
        assert torch.equal(run(stranger), alone["two"])
    assert (of_pipe.report.strip, of_model.report.strip) == (strip("one"), strip("two"))
    assert set(magpolicy.attached(pipe.transformer)) == {of_pipe, of_model}
    assert magpolicy.attached(pipe) == (of_pipe,)
    again = magpolicy.attach(pipe.transformer, **schedule("three"), steps=6)
    assert set(magpolicy.attached(pipe.transformer)) == {of_pipe, again}
    assert torch.equal(run(stranger), alone["three"])
    assert magpolicy.detach(pipe) == 1
    assert magpolicy.attached(pipe.transformer) == (again,)
    assert magpolicy.detach(pipe.transformer) == 1
    assert state(pipe.transformer) == before


def test_attaching_again_replaces(alone):
    pipe = made()
    before, call = state(pipe.transformer), type(pipe).__call__
    first = magpolicy.attach(pipe, **schedule("one"))
    run(pipe)
    for name, more in (("two", {}), ("three", {"blocks": "transformer_blocks"}), ("two", {})):
        handle = magpolicy.attach(pipe, **schedule(name), **more)
        assert magpolicy.attached(pipe) == (handle,)
        found = run(pipe)
        assert handle.report.strip == strip(name)
        if not more:
            assert torch.equal(found, alone[name])
        first.detach()
    assert first.report.strip == strip("one")
    assert magpolicy.detach(pipe) == 1
    assert state(pipe.transformer) == before
    assert type(pipe).__call__ is call


def test_wrong_settings_leave_the_handle_that_is_there(alone):
    pipe = made()
    with magpolicy.attach(pipe, **schedule("one")) as handle:
        for wrong in ({"blocks": "nope"}, {"storage_dtype": torch.int8}, {"offload": "disk"}, {"speedup": 0.5}):
            with pytest.raises((AdapterError, ArgumentError)):
                magpolicy.attach(pipe, **({} if "speedup" in wrong else schedule("two")), **wrong)
        assert magpolicy.attached(pipe) == (handle,)
        assert torch.equal(run(pipe), alone["one"])


def test_nothing_changes_during_a_run(alone):
    pipe, met = made(), []

    def change(_pipe, step, _timestep, _kwargs):
        for do in (
            lambda: magpolicy.attach(pipe, **schedule("two")),
            lambda: magpolicy.detach(pipe),
            lambda: magpolicy.detach(pipe.transformer),
        ):
            with pytest.raises(RunError, match="a run is under way") as raised:
                do()
            met.append(raised)
        return {}

    other = second(pipe)
    with magpolicy.attach(other, **schedule("two")), magpolicy.attach(pipe, **schedule("one")) as handle:
        found = FLUX.run(
            pipe, "distilled", 6, generator=torch.Generator().manual_seed(0),
            callback_on_step_end=change, callback_on_step_end_tensor_inputs=[],
        )  # fmt: skip
        assert len(met) == 18
        assert torch.equal(found, alone["one"])
        assert handle.report.strip == strip("one")
        assert len(magpolicy.attached(pipe.transformer)) == 2


def test_handles_that_share_a_model_skip_the_same_blocks():
    pipe = made()
    other = second(pipe)
    with magpolicy.attach(pipe, **schedule("one")) as handle:
        for more in ({"scope": "model"}, {"blocks": "transformer_blocks"}):
            with pytest.raises(AdapterError, match=r"attached already, and skips .*have one scope and the same blocks"):
                magpolicy.attach(other, **schedule("two"), **more)
        assert magpolicy.attached(pipe.transformer) == (handle,)
        with magpolicy.attach(other, **schedule("two"), blocks="transformer_blocks,single_transformer_blocks") as further:
            assert further.stack is handle.stack


def test_an_exception_in_one_pipeline_leaves_the_other(alone):
    pipe = made()
    other = second(pipe)

    def stop(_pipe, step, _timestep, _kwargs):
        if step == 2:
            raise KeyboardInterrupt
        return {}

    with magpolicy.attach(pipe, **schedule("one")) as handle, magpolicy.attach(other, **schedule("two")) as further:
        with pytest.raises(KeyboardInterrupt):
            FLUX.run(pipe, "distilled", 6, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=[])
        assert handle.residuals_held == 0
        assert torch.equal(run(other), alone["two"])
        assert torch.equal(run(pipe), alone["one"])
        assert (handle.report.strip, further.report.strip) == (strip("one"), strip("two"))


@pytest.mark.parametrize("keep_handle", [False, True])
def test_a_pipeline_is_freed_and_its_model_is_left_as_it_was(alone, keep_handle):
    """Nobody detached: the model lives on, in another pipeline."""
    pipe = made()
    before = state(pipe.transformer)
    own = second(pipe)
    handle = magpolicy.attach(own, **schedule("one"))
    assert torch.equal(run(own), alone["one"])
    gone, lost = weakref.ref(own), weakref.ref(handle)
    if not keep_handle:
        del handle
    del own
    gc.collect()
    assert gone() is None
    assert state(pipe.transformer) == before
    assert torch.equal(run(pipe), alone["none"])
    if keep_handle:
        assert (handle.target, handle.report.strip) == (None, strip("one"))
        handle.detach()
    else:
        gc.collect()
        assert lost() is None


def test_a_pipeline_that_is_freed_leaves_the_others(alone):
    pipe = made()
    own = second(pipe)
    magpolicy.attach(own, **schedule("one"))
    with magpolicy.attach(pipe, **schedule("two")) as handle:
        run(own)
        del own
        gc.collect()
        assert magpolicy.attached(pipe.transformer) == (handle,)
        assert torch.equal(run(pipe), alone["two"])


def test_many_requests_leave_nothing(alone):
    pipe = made()
    before, call = state(pipe.transformer), type(pipe).__call__

    def request(detach):
        own = second(pipe)
        handle = magpolicy.attach(own, **schedule("two"))
        run(own)
        if detach:
            handle.detach()

    def objects():
        gc.collect()
        return len(gc.get_objects())

    for detach in (True, False):
        request(detach)
    first = objects()
    for count in range(200):
        request(detach=bool(count % 2))
    assert objects() - first < 200, "less than one object for each request"
    gc.collect()
    assert state(pipe.transformer) == before
    assert type(pipe).__call__ is call
    for count in range(50):
        magpolicy.attach(pipe, **schedule("one" if count % 2 else "two"))
    assert len(magpolicy.attached(pipe.transformer)) == 1
    assert torch.equal(run(pipe), alone["one"])
    assert magpolicy.detach(pipe) == 1
    assert state(pipe.transformer) == before


def test_a_compiled_model_is_compiled_once_for_all(alone):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    pipe, counter = made(), CompileCounterWithBackend("eager")
    pipe.transformer.compile(backend=counter, fullgraph=True)
    with magpolicy.attach(pipe, **schedule("one")):
        run(pipe)
        run(pipe)
        for name in ("two", "three"):
            own = second(pipe)
            with magpolicy.attach(own, **schedule(name)):
                torch.testing.assert_close(run(own), alone[name])
    assert counter.frame_count == 2, "one graph computes, one skips"
    torch.compiler.reset()


def test_settings_of_one_call(alone):
    pipe, found = made(), {}
    with magpolicy.attach(pipe, **schedule("one")) as handle:
        for name in MASKS:
            with handle.settings(**schedule(name)):
                assert torch.equal(run(pipe), alone[name])
                assert handle.report.strip == strip(name)
        assert torch.equal(run(pipe), alone["one"])
        with handle.settings(speedup=1):
            assert torch.equal(run(pipe), alone["none"])

    async def task(name):
        own = second(pipe)
        with magpolicy.attach(own, **schedule("two")) as handle, handle.settings(**schedule(name)):
            await asyncio.sleep(0)
            found[name] = await asyncio.to_thread(run, own)

    async def every():
        await asyncio.gather(*map(task, MASKS))

    asyncio.run(every())
    for name in MASKS:
        assert torch.equal(found[name], alone[name])
