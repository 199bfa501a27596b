"""What nobody holds any more is freed, whichever way it came to be attached, and whatever the user keeps of the run."""

import contextlib
import contextvars
import copy
import gc
import subprocess
import sys
import threading
import weakref

import pytest

import magpolicy
from magpolicy import AdapterError, RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from nets import Rows  # noqa: E402
from zoo import CASES  # noqa: E402
from zoo._case import Draw, Row  # noqa: E402

import magpolicy_torch  # noqa: E402
from magpolicy_torch.residuals import _arithmetic  # noqa: E402

FLUX, WAN, EXPERTS = PIPES["FluxPipeline"], CASES["WanTransformer3DModel"], PIPES["WanPipeline two experts"]
SKIPPING = {"schedule": Schedule.from_mask((1, 1, 0, 1, 0, 0))}


class Watched:
    """Weak references to pipelines, to their models, and to blocks and weights of these; and to every residual."""

    def __init__(self):
        self.references, self.residuals = [], []

    def __call__(self, thing):
        models = [getattr(thing, name, None) for name in ("transformer", "transformer_2")]
        models = [model for model in models if model is not None] or [thing]
        parts = [next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0] for model in models]
        self.references += map(weakref.ref, (thing, *models, *parts, *(next(model.parameters()) for model in models)))
        return thing

    @property
    def left(self):
        gc.collect()
        return [kept for reference in (*self.references, *self.residuals) if (kept := reference()) is not None]


@pytest.fixture
def watched(monkeypatch):
    found, difference = Watched(), _arithmetic.difference

    def noted(after, before):
        made = difference(after, before)
        found.residuals.append(weakref.ref(made))
        return made

    monkeypatch.setattr(_arithmetic, "difference", noted)
    return found


def run(pipe, **more):
    return FLUX.run(pipe, "distilled", 6, **more)


def step(model, number):
    return WAN.call(model, Draw((Row((0, number), "a cat"),), level=1 - number / 6))


def loop(model, steps=6):
    for number in range(steps):
        step(model, number)


# Each makes something, attaches, and gives back what the user keeps, which must keep nothing else.
WAYS = []


def way(function):
    WAYS.append(pytest.param(function, id=function.__name__))
    return function


@way
def attached_and_called_and_never_detached(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    run(pipe)


@way
def attached_and_never_called(watch):
    magpolicy.attach(watch(FLUX.make()), **SKIPPING)


@way
def the_handle_is_kept(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    run(pipe)
    return handle


@way
def the_handle_is_kept_and_detached(watch):
    pipe = watch(FLUX.make())
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        run(pipe)
    return handle


@way
def the_handle_that_was_replaced_is_kept(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    run(pipe)
    magpolicy.attach(pipe, **SKIPPING)
    run(pipe)
    return handle


@way
def reports_are_kept(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    run(pipe)
    return handle.report, handle.reports, handle.report.schedule, handle.report.calls


@way
def settings_of_a_call(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    with handle.settings(speedup=1.5):
        run(pipe)
    with handle.settings(**SKIPPING):
        run(pipe)


@way
def settings_that_are_never_left(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    opened = contextlib.ExitStack()
    opened.enter_context(handle.settings(offload="cpu"))
    run(pipe)
    opened.pop_all()


@way
def a_calibration_is_kept_and_planned_with(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, calibrate=True)
    run(pipe)
    calibration = handle.calibration
    handle = magpolicy.attach(pipe, preset=calibration, speedup=2.0)
    run(pipe)
    return calibration, handle.report


@way
def runs_that_teach(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, speedup=2.0, learn=True)
    run(pipe)
    run(pipe)
    return handle.report


@way
def attaching_fails(watch):
    pipe = watch(FLUX.make())
    with pytest.raises(magpolicy.MagPolicyError):
        magpolicy.attach(pipe, blocks="nope", **SKIPPING)
    run(pipe)


@way
def a_call_fails(watch):
    pipe = watch(FLUX.make())
    handle = magpolicy.attach(pipe, **SKIPPING)

    def stop(_pipe, number, *_):
        if number == 2:
            raise KeyboardInterrupt
        return {}

    with contextlib.suppress(KeyboardInterrupt):
        run(pipe, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=[])
    return handle


@way
def arguments_of_a_call_are_wrong(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    with contextlib.suppress(Exception):
        run(pipe, prompt_embeds=torch.zeros(1, 3, 5))


@way
def compiled_as_a_whole(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    magpolicy.compile(pipe, region="model", backend="eager")
    run(pipe)


@way
def compiled_by_blocks(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    magpolicy.compile(pipe, backend="eager")
    run(pipe)


@way
def compiled_by_torch(watch):
    pipe = watch(FLUX.make())
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    magpolicy.attach(pipe, **SKIPPING)
    run(pipe)


@way
def offloaded_in_groups(watch):
    pipe = watch(FLUX.make())
    pipe.transformer.enable_group_offload("cpu", offload_type="block_level", num_blocks_per_group=1)
    magpolicy.attach(pipe, **SKIPPING)
    run(pipe)


@way
def residuals_are_offloaded(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, offload="cpu", **SKIPPING)
    run(pipe)


@way
def two_experts(watch):
    pipe = watch(EXPERTS.make())
    handle = magpolicy.attach(pipe, **SKIPPING)
    EXPERTS.run(pipe, next(iter(EXPERTS.ways)), 6)
    return handle


@way
def copies(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    run(pipe)
    for make_copy in (copy.copy, copy.deepcopy, diffusers.FluxPipeline.from_pipe):
        run(watch(make_copy(pipe)))


@way
def several_handles(watch):
    pipe = watch(FLUX.make())
    other = watch(copy.copy(pipe))
    kept = [magpolicy.attach(each, **SKIPPING) for each in (pipe, other)]
    magpolicy.attach(pipe.transformer, steps=6, **SKIPPING)
    run(pipe)
    run(other)
    return kept


@way
def its_model_is_called_by_another_pipeline(watch):
    pipe, other = watch(FLUX.make()), FLUX.make()
    other.transformer = pipe.transformer
    magpolicy.attach(pipe, **SKIPPING)
    with pytest.warns(UserWarning, match="was called by something else"):
        run(other)


@way
def called_in_another_thread(watch):
    pipe = watch(FLUX.make())
    magpolicy.attach(pipe, **SKIPPING)
    thread = threading.Thread(target=run, args=(pipe,))
    thread.start()
    thread.join()


@way
def ones_own_loop(watch):
    model = watch(WAN.make())
    handle = magpolicy.attach(model, steps=6, **SKIPPING)
    loop(model)
    return handle.report


@way
def ones_own_loop_that_does_not_come_to_its_end(watch):
    model = watch(WAN.make())
    handle = magpolicy.attach(model, steps=6, **SKIPPING)
    loop(model, 3)
    return handle.report


@way
def ones_own_loop_and_the_handle_is_kept_and_detached(watch):
    model = watch(WAN.make())
    with magpolicy.attach(model, steps=6, **SKIPPING) as handle:
        loop(model)
        loop(model, 3)
    return handle, handle.report


@way
def ones_own_loop_that_calibrates(watch):
    model = watch(WAN.make())
    with magpolicy.attach(model, calibrate=True, steps=6) as handle:
        loop(model)
    return handle


@way
def a_run_in_a_with_block(watch):
    model = watch(WAN.make())
    with magpolicy.attach(model, **SKIPPING) as handle, handle.run():
        loop(model)
    return handle


def in_a_generator(watch):
    model = watch(WAN.make())
    with magpolicy.attach(model, **SKIPPING) as handle, handle.run(), handle.stream("cond"):
        for number in range(6):
            step(model, number)
            yield


@way
def a_generator_that_is_dropped(watch):
    generator = in_a_generator(watch)
    next(generator)
    next(generator)


@way
def a_generator_that_is_closed_in_another_context(watch):
    generator = in_a_generator(watch)
    next(generator)
    contextvars.copy_context().run(generator.close)


@way
def a_module_of_no_host(watch):
    net = watch(Rows())
    handle = magpolicy.attach(net, **SKIPPING)
    with handle.run():
        for _ in range(6):
            net(torch.ones(1, 4, 8))
    handle.detach()
    return handle, handle.report


@way
def a_module_of_no_host_whose_run_is_never_left(watch):
    net = watch(Rows())
    opened = contextlib.ExitStack()
    opened.enter_context(magpolicy.attach(net, **SKIPPING).run())
    net(torch.ones(1, 4, 8))
    opened.pop_all()


@way
def a_module_of_no_host_that_is_called_outside_of_a_run(watch):
    net = watch(Rows())
    magpolicy.attach(net, **SKIPPING)
    with pytest.warns(UserWarning, match="outside a run"):
        net(torch.ones(1, 4, 8))


@way
def a_function_of_ones_own_loop(watch):
    net = watch(Rows())
    session = magpolicy.Session(SKIPPING["schedule"])
    with session:
        for _ in range(6):
            magpolicy_torch.run_step(session, torch.ones(1, 4, 8), net)
    return session


@pytest.mark.filterwarnings("ignore:FluxTransformer2DModel was called by:UserWarning")  # a copy shares its transformer
@pytest.mark.parametrize("make", WAYS)
def test_nothing_is_left(watched, make):
    with torch.no_grad():
        kept = make(watched)
    assert watched.references
    assert watched.left == []
    del kept


def test_what_a_detached_handle_still_tells():
    """Reports and what was measured, without the model; the model itself as long as somebody else has it."""
    pipe = FLUX.make()
    handle = magpolicy.attach(pipe, calibrate=True)
    run(pipe)
    shown = repr(handle)
    before = handle.calibration
    handle.detach()
    assert handle.module is pipe.transformer
    assert handle.target is pipe
    pipe.transformer = FLUX.make().transformer
    gc.collect()
    assert handle.calibration == before
    assert handle.calibration.provenance["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert handle.report.computed == 6
    assert (repr(handle), handle.scope) == (shown.replace("attached>", "not attached>"), "stack")
    for name in ("module", "stack", "identity"):
        with pytest.raises(RunError, match="this handle is detached and keeps no model"):
            getattr(handle, name)


def test_a_calibration_is_of_the_model_as_it_was_measured():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    pipe = FLUX.make()
    with magpolicy.attach(pipe, calibrate=True) as handle:
        run(pipe)
        before = handle.calibration
        pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert handle.calibration == before
        assert handle.identity.to_dict() != before.provenance["identity"]


def test_attaching_fails_for_another_model_and_leaves_nothing_of_either(watched):
    pipe = watched(FLUX.make())
    magpolicy.attach(pipe.transformer, steps=6, **SKIPPING)
    with pytest.raises(AdapterError, match="one scope and the same blocks"):
        magpolicy.attach(pipe, scope="model", **SKIPPING)
    del pipe
    assert watched.left == []


def test_a_script_that_ends_while_attached_ends_without_a_word():
    """What a first script is: a pipeline, a handle and a call in its globals, all gone at once."""
    script = (
        f"import sys; sys.path[:0] = {[entry for entry in sys.path if entry]!r}\n"
        "import torch, magpolicy\n"
        "from pipes import PIPES\n"
        "torch.set_grad_enabled(False)\n"
        "pipe = PIPES['FluxPipeline'].make()\n"
        "handle = magpolicy.attach(pipe, speedup=2.0, learn=False)\n"
        "PIPES['FluxPipeline'].run(pipe, 'distilled', 4)\n"
        "def again():\n"
        "    return pipe, handle\n"
        "print(handle.report.strip.count('·'))\n"
    )
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert "Exception ignored" not in done.stderr
