"""The step and its noise level are read off the scheduler, never counted: any length, scheduler, strength, interruption."""

import functools
import gc
import weakref
from collections import Counter

import pytest

import magpolicy
from magpolicy import Curve, Decision, Schedule, simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from reference import ByHand  # noqa: E402
from zoo._bare import late  # noqa: E402

from magpolicy_torch.residuals._store import ResidualStore  # noqa: E402

pytestmark = pytest.mark.sampled

COND = (1.0, 1.02, 0.99, 1.01, 0.985, 0.98, 0.97, 0.95, 0.93, 0.9)
UNCOND = (1.0, 1.0, 0.96, 1.03, 1.0, 0.99, 0.95, 0.96, 0.9, 0.92)
CURVE = Curve(COND)
TWO = Curve({"cond": COND, "uncond": UNCOND})
RULE = {"threshold": 0.08, "max_skips": 3, "retention": 0.1}


def by_hand(pipe, case, way, steps, masks, evaluations=None, start=0, **more):
    """What the bare pipeline returns with its steps skipped as ``masks`` says: one for all streams, or one for each."""
    with ByHand(case, pipe, way, evaluations or steps, ()) as reference:
        reference.plan = _masked(reference, [call for call in reference.plan if call[1] >= start], masks)
        result = case.run(pipe, way, steps, **more)
        assert next(reference.plan, None) is None, "it was called less often than expected"
    return result


def _masked(reference, calls, masks):
    for loop, step, branches in calls:
        reference.mask = masks[branches[0]] if isinstance(masks, dict) else masks
        yield loop, step, branches


def masks_of(schedule):
    """Stream to mask, whatever the order."""
    return dict(zip(schedule.streams, schedule.masks, strict=True))


def decided(schedule):
    """Stream to decisions, whatever the order."""
    return dict(zip(schedule.streams, schedule.decisions, strict=True))


def positions(report):
    """Per stream, the positions of its evaluations."""
    found = {}
    for entry in report.trace:
        found.setdefault(entry.stream, []).append(entry.step)
    return found


# Any number of steps --------------------------------------------------------------------------------------------------------

LENGTHS = (1, 2, 4, 7, 12, 30, 7)
GUIDED = [
    *(("FluxPipeline", "true cfg"), ("WanPipeline", "cfg"), ("QwenImagePipeline", "true cfg")),  # a call for each branch
    *(("StableDiffusion3Pipeline", "cfg"), ("CogVideoXPipeline", "cfg"), ("CogVideoXPipeline DPM", "cfg")),  # both in one call
    *(("PixArtSigmaPipeline", "cfg"), ("LattePipeline", "cfg"), ("DiTPipeline", "cfg"), ("AllegroPipeline", "cfg")),
    *(("HunyuanDiTPipeline", "cfg"), ("HiDreamImagePipeline", "cfg"), ("StableAudioPipeline", "cfg")),
]


@pytest.mark.parametrize(("name", "way"), GUIDED, ids=lambda v: v)
def test_one_handle_serves_any_number_of_steps(name, way):
    case = PIPES[name]
    batched = len(case.ways[way].at(0, 4)) == 1
    pipe = case.make()
    with magpolicy.attach(pipe, curve=TWO, **RULE) as handle:
        for steps in LENGTHS:
            found = case.run(pipe, way, steps)
            expected = simulate(TWO, steps=steps, batched=batched, **RULE)
            assert decided(handle.report.schedule) == decided(expected), steps
            if steps in (4, 7):
                assert torch.equal(found, by_hand(case.make(), case, way, steps, masks_of(expected))), steps


@pytest.mark.parametrize(("name", "way"), [("FluxPipeline", "distilled"), ("StableDiffusion3Pipeline", "no guidance")])
def test_one_stream_is_what_simulate_says(name, way):
    case = PIPES[name]
    pipe, curve = case.make(), Curve({"cond": COND})
    with magpolicy.attach(pipe, curve=curve, **RULE) as handle:
        for steps in LENGTHS:
            case.run(pipe, way, steps)
            assert handle.report.schedule == simulate(curve, steps=steps, **RULE)


@pytest.mark.parametrize(("name", "way"), [("FluxPipeline", "true cfg"), ("StableDiffusion3Pipeline", "cfg")])
def test_two_streams_are_what_simulate_says_in_whatever_order_they_are_called(name, way):
    case = PIPES[name]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=TWO, **RULE) as handle:
        case.run(pipe, way, 12)
    assert handle.report.schedule == simulate(TWO, steps=12, batched=name != "FluxPipeline", **RULE)


# Any scheduler --------------------------------------------------------------------------------------------------------------

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def once(steps):
    """Every evaluation at a timestep of its own."""
    return list(range(steps))


def twice_but_the_first(steps):
    """Second-order: the second half of a step is evaluated where the next one begins."""
    return [0, *(i for i in range(1, steps) for _ in range(2))]


def second_twice(steps):
    return [0, 1, *range(1, steps)]


def runge_kutta_first(steps):
    """Three steps of four evaluations, which meet twice at each of six timesteps; then a step each."""
    return [*twice_but_the_first(7), *range(7, steps + 3)]


SWAPS = [
    pytest.param(pipe, scheduler, config, places, id=f"{pipe}-{scheduler}{'-' + note if note else ''}")
    for pipe, scheduler, config, places, note in [
        ("WanPipeline", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, twice_but_the_first, ""),
        ("StableDiffusion3Pipeline", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, twice_but_the_first, ""),
        ("FluxPipeline", "FlowMatchLCMScheduler", {"shift": 3.0}, once, ""),
        ("StableDiffusion3Pipeline", "FlowMatchLCMScheduler", {"shift": 3.0}, once, ""),
        ("WanPipeline", "DPMSolverMultistepScheduler", FLOW, once, ""),
        ("WanPipeline", "DPMSolverSinglestepScheduler", FLOW | {"lower_order_final": True}, once, ""),
        ("StableDiffusion3Pipeline", "UniPCMultistepScheduler", FLOW, once, ""),
        ("PixArtSigmaPipeline", "EulerAncestralDiscreteScheduler", {}, once, ""),
        ("PixArtSigmaPipeline", "HeunDiscreteScheduler", {}, twice_but_the_first, ""),
        ("PixArtSigmaPipeline", "KDPM2DiscreteScheduler", {}, lambda steps: once(2 * steps - 1), ""),
        ("PixArtSigmaPipeline", "DPMSolverSinglestepScheduler", {"lower_order_final": True}, once, ""),
        ("PixArtSigmaPipeline", "LCMScheduler", {}, once, ""),
        ("DiTPipeline", "HeunDiscreteScheduler", {}, twice_but_the_first, ""),
        ("DiTPipeline", "UniPCMultistepScheduler", {}, once, ""),
        ("DiTPipeline", "PNDMScheduler", {"skip_prk_steps": True}, second_twice, "short"),
        ("CogVideoXPipeline", "DDIMScheduler", {}, once, ""),
        ("CogVideoXPipeline", "DEISMultistepScheduler", {}, once, ""),
        ("LattePipeline", "DDPMScheduler", {}, once, ""),
        ("LattePipeline", "DDIMScheduler", {"timestep_spacing": "trailing"}, once, "trailing"),
        ("LattePipeline", "LCMScheduler", {}, once, ""),
        ("LattePipeline", "PNDMScheduler", {"skip_prk_steps": True}, second_twice, "short"),
        ("LattePipeline", "PNDMScheduler", {}, runge_kutta_first, ""),
    ]
]


@pytest.mark.parametrize(("name", "scheduler", "config", "places"), SWAPS)
def test_a_scheduler_put_in_after_attaching(name, scheduler, config, places):
    """Every evaluation is a position; one at the same timestep as the one before is at the same level."""
    case = PIPES[name]
    way = "distilled" if name == "FluxPipeline" else "cfg"
    pipe = case.make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        case.run(pipe, way, 5)
        pipe.scheduler = getattr(diffusers, scheduler)(**config)
        for steps in (4, 6, 9):
            found = case.run(pipe, way, steps)
            at = places(steps)
            levels = [1 - place / (at[-1] + 1) for place in at]
            expected = simulate(CURVE, sigmas=levels, **RULE)
            assert len(set(at)) < len(at) or expected == simulate(CURVE, steps=len(at), **RULE)
            streams = sorted(set(sum(case.ways[way].at(0, steps), ())))
            assert positions(handle.report) == {stream: once(len(at)) for stream in streams}, steps
            assert masks_of(handle.report.schedule) == dict.fromkeys(streams, expected.mask), steps
            assert expected.skipped > 0
            bare = case.make()
            bare.scheduler = getattr(diffusers, scheduler)(**config)
            assert torch.equal(found, by_hand(bare, case, way, steps, expected.mask, len(at))), steps


# Part of a run --------------------------------------------------------------------------------------------------------------

PARTS = [pytest.param(case, way, id=f"{case.cls}-{way}") for case in PIPES.values() if case.strength for way in case.ways]
CONSTANT = [p for p in PARTS if not callable(p.values[0].ways[p.values[1]].calls)]  # the same calls at every step


@pytest.mark.filterwarnings("ignore:nothing was skipped:UserWarning")  # runs of three steps
@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("case", "way"), CONSTANT)
def test_less_than_full_strength_is_the_end_of_the_whole_run(case, way, strength):
    steps, start = 10, {0.3: 7, 0.5: 5, 1.0: 0}[strength]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        for length in (4, steps):
            found = case.run(pipe, way, length, strength=strength)
    expected = simulate(CURVE, steps=steps, part=(start, steps), **RULE)
    streams = sorted(set(sum(case.ways[way].at(0, steps), ())))
    assert positions(handle.report) == {stream: list(range(start, steps)) for stream in streams}
    assert masks_of(handle.report.schedule) == dict.fromkeys(streams, expected.mask)
    assert handle.report.schedule.first_step == expected.first_step == start
    mask = (True,) * start + expected.mask
    assert torch.equal(found, by_hand(case.make(), case, way, steps, mask, start=start, strength=strength))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_less_than_full_strength_under_another_scheduler(scheduler):
    case = PIPES["CogVideoXVideoToVideoPipeline" if scheduler == "DDIMScheduler" else "WanVideoToVideoPipeline"]
    swapped = getattr(diffusers, scheduler), FLOW if scheduler == "UniPCMultistepScheduler" else {}
    places = twice_but_the_first(10) if "Heun" in scheduler else once(10)
    start = 14 if "Heun" in scheduler else 7  # the second evaluation at the timestep of step 7, taken as its first
    pipe, bare = case.make(), case.make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        pipe.scheduler = swapped[0](**swapped[1])
        found = case.run(pipe, "cfg", 10, strength=0.3)
    levels = [1 - place / 10 for place in places]
    expected = simulate(CURVE, sigmas=levels, part=(start, len(levels)), **RULE)
    assert masks_of(handle.report.schedule) == dict.fromkeys(("cond", "uncond"), expected.mask)
    assert handle.report.schedule.first_step == start
    bare.scheduler = swapped[0](**swapped[1])
    mask = (True,) * start + expected.mask
    assert torch.equal(found, by_hand(bare, case, "cfg", 10, mask, len(levels), start, strength=0.3))


# Noise levels ---------------------------------------------------------------------------------------------------------------

MEASURED = Curve(COND, sigmas=(1.0, 0.97, 0.93, 0.88, 0.8, 0.7, 0.58, 0.45, 0.3, 0.12))
SIGMAS = [0.99, 0.98, 0.97, 0.96, 0.95, 0.5, 0.45, 0.2, 0.1]


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


def levels_of(report):
    """Noise level of each evaluation of the first stream."""
    return [entry.sigma for entry in report.trace if entry.stream == report.trace[0].stream]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "way"),
    [("FluxPipeline", "true cfg"), ("StableDiffusion3Pipeline", "cfg"), ("QwenImagePipeline", "true cfg"),
     ("Lumina2Pipeline", "cfg"), ("ZImagePipeline", "cfg"), ("AuraFlowPipeline", "cfg"), ("HunyuanVideoPipeline", "true cfg")],
)  # fmt: skip
def test_a_measured_curve_is_read_by_the_levels_of_custom_sigmas(name, way, shift):
    case = PIPES[name]
    pipe = case.make()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    with magpolicy.attach(pipe, curve=MEASURED, **RULE) as handle:
        case.run(pipe, way, len(SIGMAS), sigmas=list(SIGMAS))
        report = handle.report
        case.run(pipe, way, 9)
    levels = [shifted(sigma, shift) for sigma in SIGMAS]
    assert levels_of(report) == pytest.approx(levels, abs=1e-6)
    expected = simulate(MEASURED, sigmas=levels, **RULE)
    assert expected != simulate(MEASURED, steps=9, **RULE)
    assert set(masks_of(report.schedule).values()) == {expected.mask}
    assert report.schedule.reasons("cond") == expected.reasons()
    assert levels_of(handle.report) != pytest.approx(levels, abs=1e-3), "the next call has its own"


def test_an_assumed_curve_is_read_by_share_of_the_run_whatever_the_sigmas():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        case.run(pipe, "distilled", len(SIGMAS), sigmas=list(SIGMAS))
    assert handle.report.schedule.masks == simulate(CURVE, steps=len(SIGMAS), **RULE).masks


FLOW_LEVELS = [shifted(1 - i / 8, 3.0) for i in range(8)]
TRAILING = {"timestep_spacing": "trailing"}
TRAILING_LEVELS = [t / 1000 for t in range(999, 0, -125)]


@pytest.mark.parametrize(
    ("name", "way", "scheduler", "config", "levels"),
    [
        ("WanPipeline", "cfg", "UniPCMultistepScheduler", FLOW, None),
        ("WanPipeline", "cfg", "DPMSolverMultistepScheduler", FLOW, None),
        ("SanaPipeline", "cfg", "DPMSolverMultistepScheduler", FLOW, None),
        ("DiTPipeline", "cfg", "DDIMScheduler", {}, [*(t / 1000 for t in range(875, 0, -125)), 1e-6]),
        ("LattePipeline", "cfg", "DDIMScheduler", TRAILING, TRAILING_LEVELS),
        ("PixArtSigmaPipeline", "cfg", "EulerDiscreteScheduler", TRAILING, TRAILING_LEVELS),
        ("CogVideoXPipeline", "cfg", "CogVideoXDDIMScheduler", TRAILING, TRAILING_LEVELS),
    ],
)  # fmt: skip
def test_the_level_is_that_of_flow_or_the_share_of_pure_noise(name, way, scheduler, config, levels):
    case = PIPES[name]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=MEASURED, **RULE) as handle:
        pipe.scheduler = getattr(diffusers, scheduler)(**config)
        case.run(pipe, way, 8)
    levels = FLOW_LEVELS if levels is None else levels
    assert levels_of(handle.report) == pytest.approx(levels, abs=2e-3)
    assert set(masks_of(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


def test_levels_that_the_scheduler_counts_from_the_other_end():
    """Mochi's timesteps and sigmas are those of the signal."""
    case = PIPES["MochiPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=MEASURED, **RULE) as handle:
        case.run(pipe, "cfg", 8)
    signal = pipe.scheduler.sigmas[:8].tolist()
    assert signal == sorted(signal)
    levels = [1 - share for share in signal]
    assert levels_of(handle.report) == pytest.approx(levels, abs=1e-6)
    assert set(masks_of(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


def test_a_second_order_scheduler_reads_a_measured_curve_by_the_level_of_each_evaluation():
    case = PIPES["StableDiffusion3Pipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=MEASURED, **RULE) as handle:
        pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=1.0)
        case.run(pipe, "cfg", 8)
    ends = torch.linspace(1.0, 0.001, 8).tolist()
    levels = [ends[place] for place in twice_but_the_first(8)]
    assert levels_of(handle.report) == pytest.approx(levels, abs=1e-5)
    assert set(masks_of(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


# Runs that end early --------------------------------------------------------------------------------------------------------

STOPPED = [
    ("FluxPipeline", "true cfg"),
    ("StableDiffusion3Pipeline", "cfg"),
    ("WanPipeline", "cfg"),
    ("WanPipeline two experts", "cfg"),
    ("CogVideoXPipeline", "cfg"),
    ("LattePipeline", "cfg"),
    ("HiDreamImagePipeline", "cfg"),
]
LONG = 8
OFTEN = (1, 1, 0, 0, 1, 0, 0, 1)
# With a forecast the first two residuals are held; a plan without one has no use for the first.
FORECAST = Schedule.from_mask(OFTEN, coefficients=(0, 0, 0.5, 0.5, 0, 0.5, 0.5, 0))


class Stop(Exception):
    pass


class Residuals:
    """Finds every residual that is held, by what the garbage collector knows."""

    def __init__(self):
        self.seen = []

    def look(self):
        """How many are held now."""
        entries = (entry for store in self._stores() for kept in store._entries.values() for entry in kept)
        held = [entry.data for entry in entries]
        self.seen += [weakref.ref(residual) for residual in held]
        return len(held)

    @staticmethod
    def _stores():
        return [found for found in gc.get_objects() if isinstance(found, ResidualStore)]

    def all_freed(self):
        assert self.seen, "nothing is shown"
        return not any(store._entries for store in self._stores()) and not any(residual() is not None for residual in self.seen)


@pytest.fixture(scope="module")
def frozen():
    """What is there already is not looked at again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def held(frozen):
    return Residuals()


def interrupted(pipe, held, step):
    """Ask the pipeline to stop, as a user interface does."""

    def callback(pipe, at, timestep, tensors):
        held.look()
        pipe._interrupt = at == step
        return tensors

    return {"callback_on_step_end": callback}


def callback_raises(pipe, held, step):
    def callback(pipe, at, timestep, tensors):
        held.look()
        if at == step:
            raise Stop
        return tensors

    return {"callback_on_step_end": callback}


def model_raises(pipe, held, step):
    """Late in the first call after ``step``, in its last block or after it."""
    due = []

    def fail(*_):
        if due:
            raise due.pop()

    def callback(pipe, at, timestep, tensors):
        held.look()
        due.extend([Stop()] * (at == step))
        return tensors

    for model in filter(None, (pipe.transformer, getattr(pipe, "transformer_2", None))):
        for module in late(model):
            module.register_forward_pre_hook(fail)
    return {"callback_on_step_end": callback}


@functools.cache
def in_a_fresh_process(name, way):
    """What a whole run returns and decides."""
    case = PIPES[name]
    pipe = case.make()
    with magpolicy.attach(pipe, schedule=FORECAST) as handle:
        return case.run(pipe, way, LONG, seed=1), handle.report.trace


@pytest.mark.parametrize("step", [0, 1, 2])  # followed by a computed step, a skip, a skip after a skip
@pytest.mark.parametrize("how", [interrupted, callback_raises, model_raises], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "way"), STOPPED, ids=lambda v: v)
def test_a_run_that_ends_early_leaves_nothing(name, way, how, step, held):
    case = PIPES[name]
    pipe, (expected, decided) = case.make(), in_a_fresh_process(name, way)
    with magpolicy.attach(pipe, schedule=FORECAST) as handle:
        arguments = how(pipe, held, step)
        if how is interrupted:
            case.run(pipe, way, LONG, **arguments)
        else:
            with pytest.raises(Stop):
                case.run(pipe, way, LONG, **arguments)
        gc.collect()  # what an exception's traceback kept
        assert held.all_freed()
        assert handle.residuals_held == 0
        assert handle.report.trace == tuple(entry for entry in decided if entry.step <= step)
        assert torch.equal(case.run(pipe, way, LONG, seed=1), expected)
        assert handle.report.trace == decided


def test_while_an_exception_is_held_no_residual_is(held):
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, schedule=FORECAST) as handle:
        with pytest.raises(Stop) as error:
            case.run(pipe, "true cfg", LONG, **callback_raises(pipe, held, 2))
        assert error.value.__traceback__ is not None
        assert held.all_freed()
        assert handle.residuals_held == 0


def test_residuals_are_held_while_the_run_lasts_and_freed_at_its_last_evaluation(held):
    """Before what comes after the loop, such as decoding."""
    case = PIPES["FluxPipeline"]
    pipe, counts = case.make(), []

    def callback(pipe, step, timestep, tensors):
        counts.append((handle.residuals_held, held.look()))
        return tensors

    with magpolicy.attach(pipe, schedule=Schedule.from_mask([1, 0] * (LONG // 2))) as handle:
        case.run(pipe, "true cfg", LONG, callback_on_step_end=callback)
    assert counts == [(2, 2)] * (LONG - 1) + [(0, 0)]
    assert held.all_freed()


# Another size, another batch ------------------------------------------------------------------------------------------------


def doubled(arguments):
    """The same call for two prompts."""
    two = {name: torch.cat([value, value.roll(1, -1)]) for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    return two | ({"class_labels": [7, 3]} if "class_labels" in arguments else {})


SIZES = [
    ("FluxPipeline", "true cfg", {"height": 32}, {}),
    ("StableDiffusion3Pipeline", "cfg", {"width": 16}, {}),
    ("WanPipeline", "cfg", {"height": 64, "num_frames": 9}, {}),
    ("PixArtSigmaPipeline", "cfg", {"height": 128}, {"num_images_per_prompt": 3}),
    ("CogVideoXPipeline", "cfg", {"width": 64}, {}),
    ("LattePipeline", "cfg", {"height": 64}, {"num_images_per_prompt": 2}),
    ("DiTPipeline", "cfg", {}, {}),
]


@pytest.mark.parametrize(("name", "way", "size", "samples"), SIZES, ids=lambda v: v if isinstance(v, str) else "")
def test_another_size_or_batch_at_each_call(name, way, size, samples):
    case = PIPES[name]
    pipe, shapes = case.make(), set()
    prompts = doubled(case.ways[way].arguments(pipe))
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        for more in ({}, size, prompts, samples, size | prompts | samples, {}):
            found = case.run(pipe, way, 6, **more)
            expected = simulate(CURVE, steps=6, **RULE)
            assert masks_of(handle.report.schedule) == dict.fromkeys(("cond", "uncond"), expected.mask), more.keys()
            assert torch.equal(found, by_hand(case.make(), case, way, 6, expected.mask, **more)), more.keys()
            shapes.add(found.shape)
    assert len(shapes) > 1


@pytest.mark.parametrize(
    ("name", "way", "streams"),
    [
        ("StableDiffusion3Pipeline", "cfg", {"cond", "uncond"}),
        ("StableDiffusion3Pipeline", "no guidance", {"cond"}),
        ("FluxPipeline", "true cfg", {"cond", "uncond"}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_two_prompts_from_the_same_noise_are_samples_not_branches(name, way, streams):
    case = PIPES[name]
    pipe, bare = case.make(), case.make()

    def more():
        same_seed = {"generator": [torch.Generator().manual_seed(5) for _ in range(2)]}
        return doubled(case.ways[way].arguments(bare)) | same_seed

    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        found = case.run(pipe, way, 6, **more())
    expected = simulate(CURVE, steps=6, **RULE)
    assert torch.equal(found, by_hand(bare, case, way, 6, expected.mask, **more()))
    assert masks_of(handle.report.schedule) == dict.fromkeys(streams, expected.mask)


def cut(*latents):
    """Crop the latents."""
    return lambda name, tensor: tensor[latents] if name == "latents" else tensor


def copied(name, tensor):
    """Two samples of each row."""
    return tensor.repeat_interleave(2, dim=0)


def first_of_two(name, tensor):
    """The first sample of each branch."""
    return tensor[::2]


def changing(step, change):
    """A callback that changes what is denoised, from the end of ``step`` on."""

    def callback(pipe, at, timestep, tensors):
        return {name: change(name, tensor) for name, tensor in tensors.items()} if at == step else tensors

    return callback


ROWS, COLUMNS = (..., slice(None, 2), slice(None)), (..., slice(None, 2))
SD3_TENSORS = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
WAN_TENSORS = ["latents", "prompt_embeds", "negative_prompt_embeds"]
CHANGES = [
    pytest.param(name, way, change, tensors, two, id=f"{name}-{way}-{note}")
    for name, way, change, tensors, two, note in [
        ("StableDiffusion3Pipeline", "cfg", cut(*ROWS), ["latents"], False, "cropped"),
        ("StableDiffusion3Pipeline", "no guidance", cut(*COLUMNS), ["latents"], False, "cropped"),
        ("StableDiffusion3Pipeline", "cfg", copied, SD3_TENSORS, False, "two from one"),
        ("StableDiffusion3Pipeline", "cfg", first_of_two, SD3_TENSORS, True, "one from two"),
        ("WanPipeline", "cfg", cut(*COLUMNS), ["latents"], False, "cropped"),
        ("WanPipeline", "cfg", copied, WAN_TENSORS, False, "two from one"),
        ("WanPipeline", "cfg", first_of_two, WAN_TENSORS, True, "one from two"),
        ("FluxPipeline", "distilled", copied, ["latents", "prompt_embeds"], False, "two from one"),
        ("CogVideoXPipeline", "cfg", cut(*ROWS), ["latents"], False, "cropped"),
    ]
]


@pytest.mark.parametrize("policy", ["schedule", "rule"])
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize(("name", "way", "change", "tensors", "two"), CHANGES)
def test_what_changes_shape_within_a_run_is_computed_once_more(name, way, change, tensors, two, step, policy):
    case = PIPES[name]
    pipe, bare = case.make(), case.make()
    for each in (pipe, bare):
        if name == "WanPipeline":
            each.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # keeps nothing of the steps before
    more = doubled(case.ways[way].arguments(bare)) if two else {}
    more |= {"callback_on_step_end": changing(step, change), "callback_on_step_end_tensor_inputs": tensors}
    if policy == "schedule":
        planned = Schedule.from_mask(OFTEN)
        source, after = {"schedule": planned}, Schedule.from_mask([*OFTEN[: step + 1], 1, *OFTEN[step + 2 :]])
    else:
        source = {"curve": CURVE} | RULE
        planned = simulate(CURVE, steps=LONG, **RULE)
        after = simulate(CURVE, steps=LONG, **RULE, forced=[step + 1])
    mismatch = not planned.mask[step + 1]
    with magpolicy.attach(pipe, **source) as handle:
        found = case.run(pipe, way, LONG, **more)
    assert set(masks_of(handle.report.schedule).values()) == {after.mask}
    assert {e.decision is Decision.MISMATCH for e in handle.report.trace if e.step == step + 1} == {mismatch}
    assert handle.report.reasons.get("mismatch", 0) == mismatch * len(handle.report.schedule.streams)
    assert torch.equal(found, by_hand(bare, case, way, LONG, after.mask, **more))


# Two experts ----------------------------------------------------------------------------------------------------------------

EXPERTS = PIPES["WanPipeline two experts"]


@functools.cache
def switch_of(steps, boundary=0.8):
    """The first step of the second expert: as often as the bare pipeline calls the first one, without guidance."""
    pipe, calls = EXPERTS.make(), Counter()
    pipe.register_to_config(boundary_ratio=boundary)
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.update(["first"]))
    pipe.transformer_2.register_forward_pre_hook(lambda *_: calls.update(["second"]))
    EXPERTS.run(pipe, "no guidance", steps)
    assert calls.total() == steps
    return calls["first"]


@pytest.mark.filterwarnings("ignore:nothing was skipped:UserWarning")  # runs of two steps
def test_each_expert_has_its_own_retention_and_residuals():
    settings = {"threshold": 0.5, "max_skips": 3, "retention": 0.3}
    pipe = EXPERTS.make()
    with magpolicy.attach(pipe, curve=TWO, **settings) as handle:
        for steps in (1, 2, 4, 7, 12, 25):
            found = EXPERTS.run(pipe, "cfg", steps)
            expected = simulate(TWO, steps=steps, expert_step=switch_of(steps), **settings)
            assert decided(handle.report.schedule) == decided(expected), steps
            if steps in (4, 7, 12):
                assert 0 < switch_of(steps) < steps
                assert expected != simulate(TWO, steps=steps, **settings)
                assert torch.equal(found, by_hand(EXPERTS.make(), EXPERTS, "cfg", steps, masks_of(expected))), steps


@pytest.mark.parametrize("boundary", [0.875, 0.8, 0.5])
@pytest.mark.parametrize("steps", [8, 20, 40])
def test_a_preset_of_two_experts_switches_where_the_pipeline_does(steps, boundary):
    pipe = EXPERTS.make()
    pipe.register_to_config(boundary_ratio=boundary)
    with magpolicy.attach(pipe, preset="wan2.2-t2v-a14b") as handle:
        EXPERTS.run(pipe, "cfg", steps)
    expected = simulate("wan2.2-t2v-a14b", steps=steps, expert_step=switch_of(steps, boundary))
    assert decided(handle.report.schedule) == decided(expected)
    assert expected.skipped


@pytest.mark.parametrize(
    ("preset", "semantics"),
    [
        ("wan2.2-t2v-a14b", "official/wan2.2"),
        ("wan2.2-t2v-a14b", "official/wan2.2-t2v"),
        ("wan2.2-i2v-a14b", "official/wan2.2"),
        ("wan2.2-i2v-a14b", "official/wan2.2-i2v"),
    ],
)
@pytest.mark.parametrize(
    "steps", [20, 40]
)  # at 12 the published image-to-video rule reuses across the switch, which we never do
def test_published_rules_for_two_experts(preset, semantics, steps):
    pipe = EXPERTS.make()
    with magpolicy.attach(pipe, preset=preset, semantics=semantics) as handle:
        EXPERTS.run(pipe, "cfg", steps)
    expected = simulate(preset, steps=steps, semantics=semantics, expert_step=switch_of(steps))
    assert decided(handle.report.schedule) == decided(expected)
    assert expected.skipped


@pytest.mark.parametrize("steps", [12, 20, 50])
def test_the_published_rule_for_one_expert_of_the_same_family(steps):
    case, source = PIPES["WanPipeline expanded timesteps"], ("wan2.2-ti2v-5b-t2v", "official/wan2.2-ti2v")
    pipe = case.make()
    with magpolicy.attach(pipe, preset=source[0], semantics=source[1]) as handle:
        case.run(pipe, "cfg", steps)
    expected = simulate(source[0], steps=steps, semantics=source[1])
    assert decided(handle.report.schedule) == decided(expected)
    assert expected.skipped


def test_the_first_experts_residuals_are_freed_at_the_switch(held):
    pipe, counts, first = EXPERTS.make(), [], []

    def callback(pipe, step, timestep, tensors):
        counts.append(held.look())
        if step == switch_of(LONG) - 1:
            first.extend(held.seen)
        elif step == switch_of(LONG):
            assert not any(residual() is not None for residual in first)
        return tensors

    with magpolicy.attach(pipe, schedule=Schedule.from_mask([1] + [0] * (LONG - 1))) as handle:
        EXPERTS.run(pipe, "cfg", LONG, callback_on_step_end=callback)
    assert counts == [2] * (LONG - 1) + [0]
    assert first
    computed = [entry.step for entry in handle.report.trace if not entry.decision.skip and entry.stream == "cond"]
    assert computed == [0, switch_of(LONG)]
    assert handle.report.reasons["no_residual"] == 2


def test_one_prompt_for_two_images_reuses_like_any_other():
    """Flux is given the text once for both images, and its first block returns it once an image."""
    pipe = PIPES["FluxPipeline"].make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        PIPES["FluxPipeline"].run(pipe, "true cfg", 6, num_images_per_prompt=2)
        assert masks_of(handle.report.schedule)["cond"] == simulate(CURVE, steps=6, **RULE).mask
