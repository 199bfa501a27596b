"""A model in the user's own loop: the timestep tells the step, contexts or conditions tell the branches."""

import contextlib
import contextvars
import threading
import warnings

import pytest

import magpolicy
from magpolicy import Curve, Decision, RunError, Schedule, simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from zoo import CASES  # noqa: E402
from zoo._bare import skipped, watch  # noqa: E402
from zoo._case import Draw, Row, tensors  # noqa: E402

WAN, FLUX = CASES["WanTransformer3DModel"], CASES["FluxTransformer2DModel"]
REVERSED = CASES["Lumina2Transformer2DModel"]  # its timestep rises: 1 - noise level
RATIOS = {"cond": [1.0, 0.99, 0.97, 0.99, 0.98, 0.96], "uncond": [1.0, 1.02, 0.99, 1.05, 0.99, 1.01]}
RULE = {"threshold": 0.06, "max_skips": 2, "retention": 0.2}


@pytest.fixture
def model():
    return WAN.make()


def draw(step, steps=6, text="a cat", noise=0):
    return Draw((Row((noise, step), text),), level=1 - step / steps)


def loop(model, steps=6, texts=("a cat", ""), case=WAN, noise=0, start=0):
    return [case.call(model, draw(s, steps, text, noise)) for s in range(start, steps) for text in texts]


def test_a_run_begins_and_ends_by_itself(model):
    expected = simulate(RATIOS, **RULE)
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        first = loop(model)
        assert handle.report.schedule == expected
        assert handle.residuals_held == 0
        second = loop(model)
        assert handle.report.schedule == expected
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])


def test_unnamed_calls_at_one_timestep_are_streams_in_call_order(model):
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        loop(model, texts=("same", "same", "same"))  # the conditions tell nothing
        streams = [e.stream for e in handle.report.trace][:3]
        assert len(set(streams)) == 3
        assert [e.stream for e in handle.report.trace] == streams * 6


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what the host waits for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_who_tells_the_step_has_no_timestep_read(model):
    """With one branch's guidance left out for a while, the traces are the same either way."""
    branches = {2: ("cond",), 3: ("cond",)}
    found = []
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0, 1, 0, 1, 0])) as handle:
        for told in (False, True):
            with handle.run(), Reads() as reads:
                for step in range(6):
                    if told:
                        handle.go_to(step)
                    for name in branches.get(step, ("cond", "uncond")):
                        with model.cache_context(name):
                            WAN.call(model, draw(step))
            found.append((handle.report.trace, reads.count))
    (trace, waits), (told, none) = found
    assert [entry.step for entry in told] == [0, 0, 1, 1, 2, 3, 4, 4, 5, 5]
    assert told == trace
    assert waits - none == len(told), "one for each call; the others look for NaN, which is done on a CPU alone"


def test_only_a_run_of_ones_own_is_told_the_step(model):
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        with pytest.raises(RunError, match=r"go_to\(1\): no run is under way"):
            handle.go_to(1)
        with (
            handle.run(),
            pytest.raises(magpolicy.ArgumentError, match="step=6 is not to come in this run of 6 steps; use 0 to 5"),
        ):
            handle.go_to(6)


@pytest.mark.parametrize("case", [WAN, REVERSED], ids=lambda c: c.cls)
@pytest.mark.parametrize("until", range(1, 6))
def test_a_loop_broken_off_leaves_nothing_to_the_next(case, until):
    mask = Schedule.from_mask([1, 0, 0, 1, 0, 0])
    with magpolicy.attach(case.make(), schedule=mask) as handle:
        expected = loop(handle.module, case=case)
        trace = handle.report.trace
        for step in range(until):
            case.call(handle.module, draw(step, noise="other"))
        for found, wanted in zip(loop(handle.module, case=case), expected, strict=True):
            if until > 1:
                assert torch.equal(found[0], wanted[0])
        if until > 1:
            assert handle.report.trace == trace


def test_a_loop_broken_off_at_its_first_step_is_not_reused_from():
    """The next run's first call looks like another stream at the same step; nothing of the first may be taken for it."""
    model = WAN.make()
    with magpolicy.attach(model, schedule=Schedule.from_mask([1, 0, 0, 0])) as handle:
        WAN.call(model, draw(0, 4, noise="broken off"))
        outputs = loop(model, 4, texts=("a cat",))
        assert [e.decision.skip for e in handle.report.trace] == [False, False, False, True, True]
    _, seen = watch(WAN, model, draw(1, 4))
    for step, found in enumerate(outputs):
        plain, own = WAN.call(model, draw(step, 4)), skipped(WAN, model, draw(step, 4), residuals=seen.residuals)
        assert torch.equal(found[0], (plain if step < 2 else own)[0])


def test_an_exception_within_the_model_ends_the_run(model):
    def fail(*_):
        raise RuntimeError("out of memory")

    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        expected = loop(model)
        trace = handle.report.trace
        WAN.call(model, draw(0, noise="other"))
        hook = model.proj_out.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            WAN.call(model, draw(1, noise="other"))
        hook.remove()
        assert handle.residuals_held == 0
        for found, wanted in zip(loop(model), expected, strict=True):
            assert torch.equal(found[0], wanted[0])
        assert handle.report.trace == trace


def test_contexts_name_streams(model):
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        for step in range(6):
            for name in ("uncond", "cond"):  # the other way round: names count, not the order
                with model.cache_context(name):
                    WAN.call(model, draw(step, text=name))
        assert handle.report.schedule == simulate({name: RATIOS[name] for name in ("uncond", "cond")}, **RULE)
        assert handle.residuals_held == 0  # all named branches of the last step are evaluated: the run is over
    assert "cache_context" not in vars(model)


def test_a_batch_of_equal_latents_holds_branches(model):
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        for step in range(6):
            WAN.call(model, Draw((Row(step, ""), Row(step, "a cat")), level=1 - step / 6))
        assert handle.report.schedule == simulate({n: RATIOS[n] for n in ("uncond", "cond")}, batched=True, **RULE)
        for step in range(6):  # two images of one condition each are one stream
            WAN.call(model, Draw((Row((step, 1), "a dog"), Row((step, 2), "a cat")), level=1 - step / 6))
        assert handle.report.schedule.streams == ("cond",)


def test_guidance_that_switches_off_midway_keeps_each_branch_its_own(model):
    mask = Schedule.from_mask([1, 1, 0, 1, 0, 0])
    with magpolicy.attach(model, schedule=mask) as handle:
        for step in range(6):
            found = {text: WAN.call(model, draw(step, text=text))[0] for text in (("", "a cat") if step < 4 else ("a cat",))}
    _, seen = watch(WAN, model, draw(3))
    assert torch.equal(found["a cat"], skipped(WAN, model, draw(5), residuals=seen.residuals)[0])
    assert handle.report.trace[-1].stream == handle.report.trace[1].stream


def test_a_given_run(model):
    curve = Curve(RATIOS)
    with magpolicy.attach(model, curve=curve, **RULE) as handle:
        for steps in (4, 9):
            with handle.run(steps=steps):
                loop(model, steps)
            assert handle.report.schedule == simulate(curve, steps=steps, **RULE)
        with handle.run(steps=10, start=4):
            loop(model, 10, start=4)
        assert handle.report.schedule == simulate(curve, steps=10, part=(4, 10), **RULE)
        with handle.run(steps=3), pytest.raises(RunError, match="under way"), handle.run(steps=3):
            pass


def test_a_run_in_a_generator_may_be_closed_in_another_context(model):
    def frames():
        with handle.run():
            for step in range(6):
                yield WAN.call(model, draw(step))

    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        generator = frames()
        next(generator)
        contextvars.copy_context().run(generator.close)
        assert handle.residuals_held == 0
        with handle.run():
            loop(model)
        assert handle.report.schedule == simulate(RATIOS, **RULE)


def test_a_named_stream_that_comes_again_is_at_its_next_evaluation(model):
    """Second-order samplers evaluate twice at one timestep."""
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle, handle.run():
        for level in (1.0, 0.8, 0.8, 0.6, 0.6, 0.4):
            for name in ("cond", "uncond"):
                with handle.stream(name):
                    WAN.call(model, Draw((Row(level, name),), level=level))
        assert handle.report.schedule == simulate(RATIOS, **RULE)


def test_without_a_length_nothing_is_skipped_and_that_is_said(model):
    with magpolicy.attach(model, preset="wan2.1-t2v-1.3b") as handle:
        with pytest.warns(UserWarning, match="steps=28"):
            loop(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop(model)  # once is enough
        with pytest.raises(RunError, match="no run"):
            handle.report  # noqa: B018


def test_a_loop_that_is_longer_than_was_said_computes_the_rest(model):
    """It does not begin again at the lower noise levels of its end; the next one is a run of its own."""
    with magpolicy.attach(model, ratios=[1.0] * 3, threshold=1.0, max_skips=2, retention=0.0) as handle:
        for _ in range(2):
            with pytest.warns(UserWarning, match="evaluated more often than the run's 3 steps"):
                loop(model, 5)
            report = handle.report
            assert (report.schedule.steps, handle.residuals_held) == (3, 0)
            assert report.reasons["past_end"] == 4
            assert "steps= counts evaluations" in str(report)
        loop(model, 3)
        assert handle.report.reasons == {"no_residual": 2, "reused": 4}
        with handle.run(), handle.stream("cond"), pytest.warns(UserWarning, match="more often"):
            loop(model, 5, texts=("a cat",))
        assert [e.decision for e in handle.report.trace][3:] == [Decision.PAST_END] * 2


def test_conditions_that_change_at_every_step_are_never_reused(model):
    held = []
    handle = magpolicy.attach(model, ratios=[1.0] * 30, threshold=9.0, max_skips=30, retention=0.0)
    for step in range(29):
        WAN.call(model, draw(step, 30, text=f"scene {step}"))
        held.append(handle.residuals_held)
    with pytest.warns(UserWarning, match="nothing was skipped of what was to be: .*the prompt of 'cond'"):
        WAN.call(model, draw(29, 30, text="scene 29"))
    assert handle.report.skipped == 0
    assert handle.report.schedule.streams == ("cond",)
    assert max(held) <= 1, "residuals that nobody will use pile up"
    handle.detach()


def test_calibrating_gives_the_curve_at_its_noise_levels():
    model = FLUX.make()
    with magpolicy.attach(model, calibrate=True, steps=5) as handle:
        outputs = loop(model, 5, texts=("a cat",), case=FLUX)
        curve = handle.curve
    norms = [watch(FLUX, model, draw(s, 5))[1].residuals[0].norm(dim=-1) for s in range(5)]
    for step in range(1, 5):
        assert curve.of("cond")[step] == pytest.approx(float((norms[step] / norms[step - 1]).mean()), rel=1e-4)
    assert torch.equal(outputs[2][0], FLUX.call(model, draw(2, 5))[0])


# Two calls at one timestep, which nobody names.


def second_order(steps):
    """The timestep of each evaluation, and the number that its noise is drawn from: Heun's come twice, but for the first."""
    return [(step, place) for place, step in enumerate([0, *(step for step in range(1, steps) for _ in range(2))])]


@pytest.mark.parametrize("texts", [("a cat",), ("a cat", "")], ids=["no guidance", "guidance"])
@pytest.mark.parametrize("given", [False, True], ids=["by itself", "with block"])
def test_a_sampler_of_second_order_evaluates_again_at_one_timestep(model, texts, given):
    """The second call at a timestep is the stream's next evaluation, as its latents are others."""
    places = second_order(4)
    expected = simulate(RATIOS, steps=len(places), **RULE)
    with magpolicy.attach(model, ratios=RATIOS, **RULE, steps=len(places)) as handle:
        for _ in range(2):
            with handle.run() if given else contextlib.nullcontext():
                for step, place in places:
                    for text in texts:
                        WAN.call(model, Draw((Row((0, place), text),), level=1 - step / 4))
            assert {e.stream for e in handle.report.trace} == set(("cond", "uncond")[: len(texts)])
            masks = dict(zip(handle.report.schedule.streams, handle.report.schedule.masks, strict=True))
            assert masks["cond"] == expected.masks[0]
            assert handle.residuals_held == 0


def test_guidance_that_perturbs_the_model_from_some_step_on_is_another_branch(model):
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        for step in range(6):
            for _ in range(1 if step < 2 else 2):
                WAN.call(model, draw(step))
    assert {e.stream for e in handle.report.trace} == {"cond", "cond, again"}
    assert [e.step for e in handle.report.trace if e.stream == "cond"] == list(range(6))


def test_tiles_are_branches(model):
    """Each of other latents at every timestep, the first one too."""
    with magpolicy.attach(model, ratios=RATIOS, **RULE) as handle:
        for step in range(6):
            for tile in range(3):
                WAN.call(model, draw(step, noise=tile))
    assert {e.stream for e in handle.report.trace} == {"cond", "cond, again", "cond, again 2"}


# Loops that begin midway, turn, break off, or train.


def timed(model, timesteps, case=FLUX, **changes):
    """The strip of the last run, of calls at these timesteps, in the units of the model's own argument."""
    for level in timesteps:
        case.call(
            model,
            Draw(
                (
                    Row(
                        (0, round(level, 4)),
                    ),
                ),
                level=level,
            ),
            **changes,
        )


def falling(count, top=1.0):
    return [top * (1 - i / count) for i in range(count)]


@pytest.mark.parametrize("case", [WAN, FLUX, REVERSED], ids=["thousandths", "shares", "rising"])
@pytest.mark.parametrize(("top", "count", "start"), [(0.6, 6, 4), (0.3, 3, 7), (0.901, 10, 0), (1.0, 10, 0), (0.1, 1, 0)])
def test_image_to_image_begins_where_its_noise_is(case, top, count, start):
    """In any units, and from either end; spacings that lead begin a little below the top."""
    model, told = case.make(), case is not REVERSED or count == 10
    with magpolicy.attach(model, steps=10, speedup=2.0, learn=False) as handle:
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", magpolicy.PlanWarning)
                timed(model, falling(count, top), case)
            schedule = handle.report.schedule
            if told:
                assert (schedule.first_step, schedule.steps) == (start, count)
            elif count > 1:  # that it counts from the other end, the second step shows, and then the run begins anew
                assert (schedule.first_step, schedule.steps) == (start + 1, count - 1)
            told = told or count > 1


def test_an_inversion_and_the_way_back():
    """Noise that rises is a run from its first call, and where the timestep turns another one begins."""
    model = FLUX.make()
    with magpolicy.attach(model, steps=10, speedup=2.0, learn=False) as handle:
        for _ in range(2):
            for way in (falling(10)[::-1], falling(10)):
                timed(model, way)
                assert (handle.report.schedule.first_step, handle.report.strip) == (0, "██·█·█··█·")


def test_a_loop_that_breaks_off_and_one_inside_another():
    model = FLUX.make()
    with magpolicy.attach(model, steps=10, speedup=2.0, learn=False) as handle:
        timed(model, falling(10)[:4])
        timed(model, falling(10))
        assert handle.report.strip == "██·█·█··█·"
        timed(model, falling(10)[:5])
        timed(model, falling(10))  # inside
        assert handle.report.strip == "██·█·█··█·"
        timed(model, falling(10)[5:])  # the rest of the one around: its residuals are gone, so it begins anew, where it is
        schedule = handle.report.schedule
        assert (schedule.first_step, schedule.steps, schedule.mask[0]) == (5, 5, True)
    assert handle.residuals_held == 0


def test_loops_in_threads_do_not_see_each_other():
    """Two at once, step by step in turns, give what each gives alone."""
    model, turns, found, ways = FLUX.make(), threading.Barrier(2), {}, {"whole": falling(6), "late": falling(6, 0.6)}

    def steps_of(way, wait):
        for level in way:
            wait()
            yield FLUX.call(
                model,
                Draw(
                    (
                        Row(
                            (0, round(level, 4)),
                        ),
                    ),
                    level=level,
                ),
            )[0]

    with magpolicy.attach(model, steps=10, speedup=2.0, learn=False):
        alone = {name: list(steps_of(way, lambda: None)) for name, way in ways.items()}

        def one(name):
            found[name] = list(steps_of(ways[name], lambda: turns.wait(60)))

        threads = [threading.Thread(target=one, args=(name,)) for name in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert {name: all(map(torch.equal, found[name], alone[name])) for name in ways} == {"whole": True, "late": True}


def test_what_trains_is_never_skipped():
    """Blocks get the gradients that they get with nothing attached, and a word says why nothing was skipped."""
    model = FLUX.make().requires_grad_().train()

    def gradients():
        model.zero_grad()
        for level in (0.9, 0.7, 0.5):
            result = tensors(model(**FLUX.inputs(Draw((Row((0, level)),), level=level))))
            sum(part.square().sum() for part in result).backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    plain = gradients()
    with magpolicy.attach(model, steps=3, speedup=3.0, learn=False):
        with pytest.warns(UserWarning, match="training mode, and gradients are on"):
            found = gradients()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradients()
    assert len(found) == len(plain) > 20
    assert all(map(torch.equal, found, plain))
