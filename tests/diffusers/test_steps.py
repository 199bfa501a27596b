"""The step and its noise level are read off the scheduler, never counted: any run length, scheduler, strength or interruption."""

import gc
import weakref
from collections import Counter

import pytest

import magpolicy
from magpolicy import Curve, Decision, Schedule, simulate

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from magpolicy_torch._store import ResidualStore  # noqa: E402
from pipes import PIPES  # noqa: E402
from reference import ByHand  # noqa: E402

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


def of_streams(schedule):
    """Stream to mask, whatever the order."""
    return dict(zip(schedule.streams, schedule.masks, strict=True))


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
            assert of_streams(handle.report.schedule) == of_streams(expected), steps
            if steps in (4, 7):
                assert torch.equal(found, by_hand(case.make(), case, way, steps, of_streams(expected))), steps


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
            assert positions(handle.report) == dict.fromkeys(streams, list(range(len(at)))), steps
            assert of_streams(handle.report.schedule) == dict.fromkeys(streams, expected.mask), steps
            assert 0 < expected.skipped
            bare = case.make()
            bare.scheduler = getattr(diffusers, scheduler)(**config)
            assert torch.equal(found, by_hand(bare, case, way, steps, expected.mask, len(at))), steps


# Part of a run --------------------------------------------------------------------------------------------------------------

PARTS = [pytest.param(case, way, id=f"{case.cls}-{way}") for case in PIPES.values() if case.strength for way in case.ways]
CONSTANT = [p for p in PARTS if not callable(p.values[0].ways[p.values[1]].calls)]


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
    assert positions(handle.report) == dict.fromkeys(streams, list(range(start, steps)))
    assert of_streams(handle.report.schedule) == dict.fromkeys(streams, expected.mask)
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
    assert of_streams(handle.report.schedule) == dict.fromkeys(("cond", "uncond"), expected.mask)
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
    assert set(of_streams(report.schedule).values()) == {expected.mask}
    assert report.schedule.reasons("cond") == expected.reasons()
    assert levels_of(handle.report) != pytest.approx(levels, abs=1e-3), "the next call has its own"


def test_an_assumed_curve_is_read_by_share_of_the_run_whatever_the_sigmas():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=CURVE, **RULE) as handle:
        case.run(pipe, "distilled", len(SIGMAS), sigmas=list(SIGMAS))
    assert handle.report.schedule.masks == simulate(CURVE, steps=len(SIGMAS), **RULE).masks


FLOW_LEVELS = [shifted(1 - i / 8, 3.0) for i in range(8)]


@pytest.mark.parametrize(
    ("name", "way", "scheduler", "config", "levels"),
    [
        ("WanPipeline", "cfg", "UniPCMultistepScheduler", FLOW, None),
        ("WanPipeline", "cfg", "DPMSolverMultistepScheduler", FLOW, None),
        ("SanaPipeline", "cfg", "DPMSolverMultistepScheduler", FLOW, None),
        ("DiTPipeline", "cfg", "DDIMScheduler", {}, [*(t / 1000 for t in range(875, 0, -125)), 1e-6]),
        ("LattePipeline", "cfg", "DDIMScheduler", {"timestep_spacing": "trailing"}, [t / 1000 for t in range(999, 0, -125)]),
        ("PixArtSigmaPipeline", "cfg", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, [t / 1000 for t in range(999, 0, -125)]),
        ("CogVideoXPipeline", "cfg", "CogVideoXDDIMScheduler", {"timestep_spacing": "trailing"}, [t / 1000 for t in range(999, 0, -125)]),
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
    assert set(of_streams(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


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
    assert set(of_streams(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


def test_a_second_order_scheduler_reads_a_measured_curve_by_the_level_of_each_evaluation():
    case = PIPES["StableDiffusion3Pipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, curve=MEASURED, **RULE) as handle:
        pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=1.0)
        case.run(pipe, "cfg", 8)
    ends = torch.linspace(1.0, 0.001, 8).tolist()
    levels = [ends[place] for place in twice_but_the_first(8)]
    assert levels_of(handle.report) == pytest.approx(levels, abs=1e-5)
    assert set(of_streams(handle.report.schedule).values()) == {simulate(MEASURED, sigmas=levels, **RULE).mask}


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


class Stop(Exception):
    pass


class Residuals:
    """Finds every residual that is held, by what the garbage collector knows."""

    def __init__(self):
        self.seen = []

    def look(self):
        """How many are held now."""
        held = [entry.data for store in self._stores() for entry in store._entries.values()]
        self.seen += [weakref.ref(residual) for residual in held]
        return len(held)

    @staticmethod
    def _stores():
        return [found for found in gc.get_objects() if isinstance(found, ResidualStore)]

    def all_freed(self):
        assert self.seen, "nothing is shown"
        return not any(store._entries for store in self._stores()) and not any(residual() is not None for residual in self.seen)


@pytest.fixture
def held():
    gc.collect()
    gc.freeze()  # what is there already is not looked at again and again
    yield Residuals()
    gc.unfreeze()


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
    """Within the first call after ``step``, in its last block: also where that is skipped."""
    done = []

    def fail(*_):
        if done and done[-1] == step:
            raise Stop

    def callback(pipe, at, timestep, tensors):
        held.look()
        done.append(at)
        return tensors

    for model in filter(None, (pipe.transformer, getattr(pipe, "transformer_2", None))):
        lists = [child for child in model.children() if isinstance(child, torch.nn.ModuleList) and len(child) > 1]
        lists[-1][-1].register_forward_pre_hook(fail)
    return {"callback_on_step_end": callback}


@pytest.mark.parametrize("step", [0, 1, 2, 4])  # followed by a computed step, a skip, a skip after a skip, a skip
@pytest.mark.parametrize("how", [interrupted, callback_raises, model_raises], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "way"), STOPPED, ids=lambda v: v)
def test_a_run_that_ends_early_leaves_nothing(name, way, how, step, held):
    case = PIPES[name]
    fresh = case.make()
    schedule = Schedule.from_mask(OFTEN)
    with magpolicy.attach(fresh, schedule=schedule) as handle:
        expected = case.run(fresh, way, LONG, seed=1)
        decided = handle.report.trace

    pipe = case.make()
    with magpolicy.attach(pipe, schedule=schedule) as handle:
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
    with magpolicy.attach(pipe, schedule=Schedule.from_mask(OFTEN)) as handle:
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

    with magpolicy.attach(pipe, schedule=Schedule.from_mask(OFTEN)) as handle:
        case.run(pipe, "true cfg", LONG, callback_on_step_end=callback)
    assert counts == [(2, 2)] * (LONG - 1) + [(0, 0)]
    assert held.all_freed()
