"""Attaching, runs, reports, copies, threads, and that nothing is left behind."""

import copy
import functools
import gc
import inspect
import io
import itertools
import pickle
import threading
import warnings

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, Decision, RunError, Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

HALF = Schedule.from_mask([1, 0, 1, 0])


def snapshot(module):
    """Every attribute of every module, by identity, and its class."""
    return {name: (type(m), {k: id(v) for k, v in m.__dict__.items()}) for name, m in module.named_modules()}


def attach(case, mask=(1, 0, 1, 0), **settings):
    return magpolicy.attach(case.module, schedule=Schedule.from_mask(mask), **settings)


@pytest.mark.parametrize("scope", ["stack", "model"])
def test_detaching_restores_every_attribute(case, scope):
    before = snapshot(case.module)
    handle = attach(case, scope=scope)
    assert snapshot(case.module) != before
    with handle.run():
        case()
        case()
    assert handle.report.skipped == 1
    handle.detach()
    handle.detach()
    assert snapshot(case.module) == before
    with pytest.raises(RunError, match="detached"), handle.run():
        pass


def test_attaching_again_replaces(plain):
    before = snapshot(plain.module)
    first = attach(plain)
    with first.run():
        plain()
    for scope in ("model", "stack"):
        second = attach(plain, (1, 1, 0), scope=scope)
        assert magpolicy.attached(plain.module) == (second,)
        with pytest.raises(RunError, match="another one took its place; attach again"), first.run():
            pass
        first.detach()
        with second.run():
            for _ in range(3):
                plain()
        assert (second.report.strip, second.report.scope) == ("██·", scope)
    assert first.report.strip == "█", "its last run is still told"
    second.detach()
    assert snapshot(plain.module) == before
    assert magpolicy.attached(plain.module) == ()


def test_attaching_again_with_wrong_settings_leaves_the_handle_that_is_there(plain):
    with attach(plain) as handle:
        before = snapshot(plain.module)
        for wrong in ({"blocks": "nope"}, {"storage_dtype": torch.int8}, {"scope": "model", "blocks": "blocks"}, {"steps": 9}):
            with pytest.raises((AdapterError, ArgumentError)):
                attach(plain, **wrong)
        with pytest.raises(ArgumentError, match=r"speedup=0\.5"):
            magpolicy.attach(plain.module, speedup=0.5)
        assert snapshot(plain.module) == before
        assert magpolicy.attached(plain.module) == (handle,)
        with handle.run():
            plain()
            plain()
        assert handle.report.skipped == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another thread"])
def test_nothing_is_replaced_or_detached_during_a_run(plain, elsewhere):
    def change():
        for wanted, do in (
            (r"attach\(\): it is attached already, and a run is under way", lambda: attach(plain)),
            (r"detach\(\): a run is under way on this", lambda: magpolicy.detach(plain.module)),
        ):
            with pytest.raises(RunError, match=wanted):
                do()
        done.append(True)

    done = []
    with attach(plain) as handle:
        before = snapshot(plain.module)
        with handle.run():
            plain()
            if elsewhere:
                thread = threading.Thread(target=change)
                thread.start()
                thread.join()
            else:
                change()
            assert snapshot(plain.module) == before
            plain()
        assert done
        assert handle.report.strip == "█·"


def test_detaching_without_the_handle(plain):
    before = snapshot(plain.module)
    assert magpolicy.detach(plain.module) == 0
    handle = attach(plain)
    with handle.run():
        plain()
    assert magpolicy.detach(plain.module) == 1
    assert magpolicy.detach(plain.module) == 0
    assert snapshot(plain.module) == before
    handle.detach()
    assert handle.report.computed == 1


def test_a_handle_that_was_lost_is_found(plain):
    attach(plain)
    gc.collect()
    (handle,) = magpolicy.attached(plain.module)
    with handle.run():
        plain()
    assert handle.report.computed == 1
    assert magpolicy.detach(plain.module) == 1


def test_what_cannot_be_looked_up():
    for look in (magpolicy.attached, magpolicy.detach):
        with pytest.raises(AdapterError, match=r"target=builtins\.object is nothing that an installed adapter can look up"):
            look(object())


def test_attaching_again_and_again_leaves_nothing(plain):
    def attach_and_run():
        with attach(plain, (1, 0)).run():
            plain()
            plain()

    before = snapshot(plain.module)
    attach_and_run()
    gc.collect()
    objects = len(gc.get_objects())
    for _ in range(100):
        attach_and_run()
    gc.collect()
    assert len(gc.get_objects()) - objects < 100, "less than one object for each"
    magpolicy.detach(plain.module)
    assert snapshot(plain.module) == before


def test_blocks_of_an_attached_model_are_not_attached_in_another(plain):
    with attach(plain):
        before = snapshot(plain.module)
        with pytest.raises(AdapterError, match="attached already"):
            magpolicy.attach(torch.nn.Sequential(plain.module), schedule=HALF, blocks=list(plain.module.blocks))
        assert snapshot(plain.module) == before


def test_attaching_that_fails_leaves_nothing(plain):
    before = snapshot(plain.module)
    for wrong in ({"blocks": "nope"}, {"storage_dtype": torch.int8}, {"scope": "model", "blocks": "blocks"}):
        with pytest.raises((AdapterError, ArgumentError)):
            attach(plain, **wrong)
        assert snapshot(plain.module) == before


def test_a_block_attached_elsewhere_stops_before_anything_is_patched(plain, kit):
    shared = plain.module.blocks[2]
    with magpolicy.attach(shared, schedule=HALF, scope="model"):
        before = snapshot(plain.module)
        with pytest.raises(AdapterError, match="attached already"):
            attach(plain)
        assert snapshot(plain.module) == before


def test_what_is_no_module_is_not_ours():
    with pytest.raises(AdapterError, match="nothing an installed adapter can drive"):
        magpolicy.attach(object(), schedule=HALF)


def hooked(module):
    """As accelerate's hooks do: forward replaced on the instance by a partial bound to the module."""
    old = module.forward
    module.forward = functools.update_wrapper(functools.partial(_hooked_forward, module), old)
    module._old_forward = old


def _hooked_forward(module, *args, **kwargs):
    module.hook_calls = getattr(module, "hook_calls", 0) + 1
    return type(module).forward(module, *args, **kwargs)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("scope", ["stack", "model"])
def test_a_copy_is_not_attached(plain, kit, how, hooks, scope):
    for module in (plain.module, *plain.blocks):
        module._forward_hooks.clear()  # the test's own closures
        for inner in module.modules():
            inner._forward_hooks.clear()
        if hooks:
            hooked(module)
    x = kit.noise(1, (1, 4, 8))
    expected = plain.module(x)
    with attach(plain, (1, 0, 0), scope=scope) as handle, handle.run():
        handle.module(x)
        if how == "deepcopy":
            twin = copy.deepcopy(plain.module)
        elif how == "pickle":
            twin = pickle.loads(pickle.dumps(plain.module))
        else:
            buffer = io.BytesIO()
            torch.save(plain.module, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
        with torch.no_grad():
            for parameter in plain.module.parameters():
                parameter.zero_()  # the copy must not run the original's blocks
        assert torch.equal(twin(x), expected)
        assert torch.equal(twin(x), expected)
        assert len(handle.report.trace) == 1
        attach_again = magpolicy.attach(twin, schedule=HALF, scope=scope)
        with attach_again.run():
            first = twin(x)
            torch.testing.assert_close(twin(x), first)
        assert attach_again.report.skipped == 1
    for module in twin.modules():
        forward = module.__dict__.get("forward")
        while forward is not None:
            owner = getattr(forward, "__self__", None)
            assert owner is None or owner not in set(plain.module.modules())
            forward = getattr(forward, "__wrapped__", None)


def test_hooks_put_on_after_attaching_survive_detaching(plain):
    handle = attach(plain)
    hooked_block = plain.module.blocks[1]
    outer = hooked_block.forward
    calls = []
    hooked_block.forward = lambda *a, **k: calls.append(1) or outer(*a, **k)
    with handle.run():
        first = plain()
        torch.testing.assert_close(plain(), first)
    assert len(calls) == 1, "a skip does not call the block"
    handle.detach()
    plain()
    assert len(calls) == 2
    assert "forward" not in plain.module.blocks[0].__dict__


def test_forwards_replaced_after_attaching_do_not_matter(plain):
    """accelerate puts the class's forward back when its hooks go."""
    with attach(plain) as handle, handle.run():
        expected = plain()
        for module in (plain.module, *plain.blocks):
            module.forward = functools.partial(type(module).forward, module)
        torch.testing.assert_close(plain(), expected)
        assert torch.equal(plain(), expected)
    assert handle.report.strip == "█·█"


def test_state_and_signature_stay(case):
    keys, signature = list(case.module.state_dict()), inspect.signature(case.module.forward)
    with attach(case):
        assert list(case.module.state_dict()) == keys
        assert inspect.signature(case.module.forward) == signature
        assert len(list(case.module.modules())) == len(set(case.module.modules()))


def test_an_exception_frees_everything_and_the_next_run_is_fresh(case):
    with attach(case) as handle:
        with handle.run():
            expected = [case(key) for key in range(4)]
        trace = handle.report.trace
        store = None
        with pytest.raises(KeyboardInterrupt), handle.run():  # noqa: PT012 - the run is what is left by it
            case(9)
            store = handle._run.get().on(handle.stack).store
            assert store.streams
            raise KeyboardInterrupt
        assert store.nbytes == 0
        assert len(handle.report.trace) == 1
        with handle.run():
            for key in range(4):
                assert torch.equal(case(key), expected[key])
        assert handle.report.trace == trace


def test_an_exception_within_the_model_stores_nothing_and_the_step_can_be_repeated(plain):
    failing = {"fail": True}

    def fail(*_):
        if failing["fail"]:
            raise ValueError("out of memory, say")

    hook = plain.blocks[1].register_forward_pre_hook(fail)
    with attach(plain, (1, 0)) as handle, handle.run():
        with pytest.raises(ValueError, match="out of memory"):
            plain()
        assert handle.residuals_held == 0
        failing["fail"] = False
        first = plain()
        torch.testing.assert_close(plain(), first)
    hook.remove()
    assert handle.report.schedule == Schedule.from_mask([1, 0])


def test_outside_a_run_it_computes_and_says_so_once(plain):
    expected = plain()
    with attach(plain) as handle:
        with pytest.warns(UserWarning, match=r"outside a run.*handle.run"):
            assert torch.equal(plain(), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain()
        with pytest.raises(RunError, match="no run yet"):
            _ = handle.report


def test_more_evaluations_than_steps_compute(plain):
    with attach(plain, (1, 0)) as handle, handle.run():
        first = [plain(), plain()]
        with pytest.warns(UserWarning, match="more often than the run's 2 steps"):
            third = plain()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain()
    assert torch.equal(third, first[0])
    assert [e.decision for e in handle.report.trace][2:] == [Decision.PAST_END] * 2
    assert [e.step for e in handle.report.trace] == [0, 1, 2, 3]
    assert (handle.report.computed, handle.report.skipped) == (3, 1)
    assert handle.report.schedule == Schedule.from_mask([1, 0])


def test_the_report_reads_well_and_is_there_during_the_run(plain):
    with attach(plain) as handle, handle.run():
        plain()
        assert handle.report.computed == 1
        for _ in range(3):
            plain()
    strip, reasons, times, by = str(handle.report).splitlines()
    assert (strip, reasons) == (str(HALF), "scheduled 2, reused 2")
    assert by == "by the schedule given"
    assert "computed" in times
    assert "skipped" in times
    assert handle.report.estimated_speedup == 2.0
    assert handle.report.measured_speedup > 0
    assert all(seconds > 0 for seconds in handle.report.seconds.values())


def test_the_report_says_that_reasons_count_each_stream(plain):
    """A step of two streams is two evaluations; else 10 of 20 steps would read as 20 computed."""
    with attach(plain) as handle, handle.run():
        for _ in range(4):
            for stream in ("cond", "uncond"):
                with handle.stream(stream):
                    plain()
    assert str(handle.report).splitlines()[1] == "scheduled 4, reused 4, counted in each of 2 streams"


def test_an_empty_run_has_a_report(plain):
    with attach(plain) as handle, handle.run():
        pass
    assert (handle.report.computed, handle.report.skipped, handle.report.schedule) == (0, 0, None)
    assert "nothing" in str(handle.report)


def test_out_of_order(plain):
    handle = attach(plain)
    with handle.run():
        with pytest.raises(RunError, match="under way"), handle.run():
            pass
        with pytest.raises(RunError, match="under way"):
            handle.detach()
        plain()
        assert handle.report.computed == 1, "the failed calls must not disturb the run"
    with pytest.raises(ArgumentError), handle.stream():
        pass
    with pytest.raises(ArgumentError), handle.stream("a", "a"):
        pass
    handle.detach()


def test_a_run_of_unknown_length_is_an_error_that_leaves_no_run(plain):
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        with pytest.raises(ArgumentError, match="steps"), handle.run():
            pass
        with handle.run(steps=1):
            plain()


def test_a_run_may_start_in_the_middle(plain):
    ratios = [1.0] * 10
    settings = {"threshold": 1.0, "max_skips": 2, "retention": 0.3}
    with magpolicy.attach(plain.module, ratios=ratios, **settings) as handle, handle.run(start=4):
        for key in range(6):
            plain(key)
    assert [e.step for e in handle.report.trace] == [4, 5, 6, 7, 8, 9]
    assert handle.report.schedule == magpolicy.simulate(ratios, **settings, part=(4, 10))


def test_a_stream_that_sits_steps_out_goes_on_where_it_is_told(plain):
    with attach(plain, [1, 0, 0, 1, 0, 0]) as handle:
        for told in (True, False):
            with handle.run():
                for step in range(6):
                    if told:
                        handle.go_to(step)
                    for stream in ("cond", "uncond") if step not in (1, 2) else ("cond",):
                        with handle.stream(stream):
                            plain()
            trace = [(e.step, e.decision.skip) for e in handle.report.trace if e.stream == "uncond"]
            expected = [0, 3, 4, 5] if told else [0, 1, 2, 3]
            assert trace == [(step, step not in (0, 3)) for step in expected]


def test_a_stream_that_comes_twice_at_a_step_is_at_its_next_evaluation(plain):
    with attach(plain, [1, 0, 0, 1]) as handle, handle.run():
        for step in (0, 1):
            handle.go_to(step)
            plain(), plain()
        assert [e.step for e in handle.report.trace] == [0, 1, 2, 3]


@pytest.mark.parametrize("step", [-1, 4, 1.5, "1"])
def test_a_step_that_is_not_to_come_is_an_error(plain, step):
    with attach(plain) as handle:
        with pytest.raises(RunError, match="no run is under way"):
            handle.go_to(0)
        with handle.run():
            handle.go_to(1)
            for wrong in (step, 0):
                with pytest.raises(ArgumentError, match="is not to come in this run of 4 steps; use 1 to 3"):
                    handle.go_to(wrong)
            plain()
            assert handle.report.trace[0].step == 1


def test_a_run_that_starts_in_the_middle_does_not_go_to_what_is_before(plain):
    with attach(plain) as handle, handle.run(start=2):
        with pytest.raises(ArgumentError, match="step=1 is not to come in this run of 4 steps; use 2 to 3"):
            handle.go_to(1)
        handle.go_to(torch.tensor(3))
        plain()
        assert [e.step for e in handle.report.trace] == [3]


def test_two_handles_on_two_models_do_not_see_each_other(cases):
    """One is called from within the other's blocks, while they are not skipped."""
    outer, inner = cases["Plain"](), cases["InPlace"]()
    hook = outer.blocks[1].register_forward_pre_hook(lambda *_: inner())
    with attach(outer, (1, 1, 0)) as a, attach(inner, (1, 0, 1)) as b, a.run(), b.run():
        outer()
        outer()
        outer()
    hook.remove()
    assert a.report.schedule == Schedule.from_mask([1, 1, 0])
    assert b.report.schedule == Schedule.from_mask([1, 0])


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_model_that_calls_itself_is_one_evaluation(plain):
    """The inner call is part of the outer one; its blocks run twice, so nothing is skipped."""
    net = plain.module
    inner = type(net).forward

    class Twice(type(net)):
        def forward(self, x, again=True):
            return self(x, again=False) + inner(self, x) if again else inner(self, x)

    net.__class__ = Twice
    with attach(plain) as handle, handle.run():
        first = plain()
        assert torch.equal(plain(), first)
    assert [e.decision for e in handle.report.trace] == [Decision.SCHEDULED, Decision.UNSUPPORTED]


def test_threads_do_not_see_each_other(case):
    with attach(case) as handle:
        expected = {}
        for thread in range(3):
            with handle.run():
                expected[thread] = [case(10 * thread + key) for key in range(4)]
        found, barrier = {}, threading.Barrier(3)

        def work(thread):
            outputs = []
            with torch.no_grad(), handle.run():
                for key in range(4):
                    barrier.wait(timeout=30)  # all in the middle of their runs at the same time
                    outputs.append(case(10 * thread + key))
                found[thread] = outputs, handle.report.schedule

        threads = [threading.Thread(target=work, args=(thread,)) for thread in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for thread, outputs in expected.items():
            assert found[thread][1] == HALF
            for a, b in zip(found[thread][0], outputs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        handle.detach()


def test_calibration_measures_the_curve(plain, kit):
    import numpy as np

    sigmas = [1.0, 0.7, 0.3]
    residuals = []
    with magpolicy.attach(plain.module, calibrate=True) as handle, handle.run(sigmas=sigmas):
        for key in range(3):
            x = kit.noise(key, (1, 9, 8))
            residuals.append(plain.module(x) / 2 - x)
        assert handle.residuals_held == 0, "a calibration needs no residuals kept"
    norms = [r.norm(dim=-1) for r in residuals]
    expected = [1.0, *[(b / a).mean().item() for a, b in itertools.pairwise(norms)]]
    curve = handle.curve
    assert handle.report.computed == 3
    np.testing.assert_allclose(curve.ratios["single"], expected, rtol=1e-4)
    assert tuple(curve.sigmas) == tuple(sigmas)


def test_a_calibration_of_two_batched_streams_is_that_of_each(plain, kit):
    x = [kit.noise(key, (2, 9, 8)) for key in range(3)]
    with magpolicy.attach(plain.module, calibrate=True) as handle:
        with handle.run(steps=3), handle.stream("cond", "uncond"):
            for step in x:
                plain.module(step)
        joint = handle.curve
        with handle.run(steps=3):
            for step in x:
                for place, stream in enumerate(("cond", "uncond")):
                    with handle.stream(stream):
                        plain.module(step[place : place + 1])
        apart = handle.curve
    for stream in ("cond", "uncond"):
        assert list(joint.ratios[stream]) == pytest.approx(list(apart.ratios[stream]), rel=1e-5)
    assert joint.ratios["cond"] != joint.ratios["uncond"]


@pytest.mark.filterwarnings("ignore:nothing was:UserWarning")  # of the run as a whole
def test_a_curve_that_is_not_there(plain):
    with attach(plain) as handle:
        with handle.run():
            plain()
        with pytest.raises(RunError, match="calibrate=True"):
            _ = handle.curve

    class InASet(torch.nn.Module):
        def forward(self, x):
            return {x}

    net = InASet()
    with magpolicy.attach(net, calibrate=True, scope="model") as handle:
        with handle.run(steps=1):
            net(torch.ones(1, 8))
        with pytest.raises(RunError, match="could not be followed"):
            _ = handle.curve


@pytest.mark.parametrize("width", [4, 8, 12])
def test_a_black_box_of_another_width_is_skipped(width):
    """Of the same shape its residual is output minus input; of another one the output itself."""
    torch.manual_seed(0)
    net, (first, then) = torch.nn.Linear(8, width), torch.randn(2, 1, 8)
    with torch.no_grad(), magpolicy.attach(net, schedule=Schedule.from_mask([1, 0]), scope="model") as handle:
        plain = torch.nn.functional.linear(first, net.weight, net.bias)
        with handle.run():
            assert torch.equal(net(first), plain)
            found = net(then)
        assert handle.report.skipped == 1
    assert torch.equal(found, then + (plain - first) if width == 8 else plain)


def test_a_run_in_a_generator_that_is_closed_in_another_context(plain):
    """As an event loop closes what is left over, or the garbage collector."""
    import contextvars

    def steps(handle):
        with handle.run(), handle.stream("cond"):
            while True:
                yield plain()

    with attach(plain) as handle:
        generator = steps(handle)
        next(generator)
        assert handle.residuals_held == 1
        contextvars.copy_context().run(generator.close)
        assert handle.residuals_held == 0
        assert handle.report.trace[0].stream == "cond"
        for _ in range(2):  # the run is over here too, and so is its stream
            with handle.run():
                plain()
        assert handle.report.trace[0].stream == "single"


def test_gradients_of_what_a_model_is_given_are_those_of_its_blocks(kit):
    """Guidance by a loss: of frozen weights, only the latents' gradients can be meant. A skip would have none of the blocks."""
    net = kit.Net().requires_grad_(False)

    def gradients():
        torch.manual_seed(0)
        found = []
        for _ in range(6):
            x = torch.randn(1, 4, 8, requires_grad=True)
            net(x).sum().backward()
            found.append(x.grad)
        return found

    plain = gradients()
    with magpolicy.attach(net, speedup=2.0, learn=False) as handle:
        with pytest.warns(UserWarning, match="gradients of what it is given are wanted"), handle.run(steps=6):
            found = gradients()
        assert all(map(torch.equal, found, plain))
        assert any("gradients" in words for words in handle.report.problems)
        with handle.run(steps=6), torch.no_grad():
            for _ in range(6):
                net(torch.zeros(1, 4, 8))
        assert handle.report.skipped == 3
