"""Calls of the model that are no steps: of a pipeline's callbacks, of observers, of a pipeline within."""

import copy

import pytest

import magpolicy
from magpolicy import Schedule

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback  # noqa: E402

STRIP = "██·█··"
SKIPPING = {"schedule": Schedule.from_mask([c == "█" for c in STRIP])}
CASES = [
    ("FluxPipeline", "true cfg"),
    ("FluxPipeline", "distilled"),
    ("StableDiffusion3Pipeline", "cfg"),
    ("WanPipeline", "cfg"),
]
each = pytest.mark.parametrize(("name", "way"), CASES)


class Calls:
    """Repeats the model's last call, in full; notes what came of it."""

    def __init__(self, pipe):
        self.pipe, self.given, self.made, self.within = pipe, None, [], False
        pipe.transformer.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        if not self.within:
            self.given = args, dict(kwargs)

    def again(self):
        args, kwargs = self.given
        self.within = True
        try:
            self.made.append(self.pipe.transformer(*args, **kwargs)[0].clone())
        finally:
            self.within = False

    def callback(self, pipe, step, timestep, kwargs):
        self.again()
        return {}


class AsPipelineCallback(PipelineCallback):
    """Of diffusers' own kind, which pipelines ask for; it keeps a count of its own."""

    def __init__(self, calls):
        super().__init__(cutoff_step_ratio=None, cutoff_step_index=0)
        self.calls, self.count = calls, 0

    @property
    def tensor_inputs(self):
        return ["latents"]

    def callback_fn(self, pipe, step, timestep, kwargs):
        self.count += 1
        self.calls.again()
        return kwargs


def several(calls):
    return MultiPipelineCallbacks([AsPipelineCallback(calls)])


KINDS = {"a function": lambda calls: calls.callback, "PipelineCallback": AsPipelineCallback, "MultiPipelineCallbacks": several}


@pytest.mark.parametrize("kind", KINDS)
@each
def test_a_callback_calls_the_model(name, way, kind):
    case = PIPES[name]
    plain, pipe = case.make(), case.make()
    with magpolicy.attach(plain, **SKIPPING):
        expected = case.run(plain, way, 6)
    calls = Calls(pipe)
    callback = KINDS[kind](calls)
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        for _ in range(2):
            assert torch.equal(case.run(pipe, way, 6, callback_on_step_end=callback), expected)
            assert handle.report.strip == STRIP
            assert set(handle.report.schedule.streams) == ({"cond"} if way == "distilled" else {"cond", "uncond"})
            assert handle.report.problems == ()
    assert len(calls.made) == 12
    if kind == "PipelineCallback":
        assert callback.count == 12
    args, kwargs = calls.given
    with torch.no_grad():
        assert torch.equal(pipe.transformer(*args, **kwargs)[0], calls.made[-1]), "such a call computes"


def test_a_callback_calls_a_pipeline():
    """One of its own scheduler, in the midst of the other's run; not attached, it computes."""
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        expected = case.run(pipe, "distilled", 6)
        within = copy.copy(pipe)
        within.scheduler = copy.deepcopy(pipe.scheduler)

        def callback(*_):
            case.run(within, "true cfg", 2, seed=5)
            return {}

        torch.manual_seed(0)
        assert torch.equal(case.run(pipe, "distilled", 6, callback_on_step_end=callback), expected)
        assert handle.report.strip == STRIP
        with magpolicy.attach(within, schedule=Schedule.from_mask([1, 0])) as other:
            assert torch.equal(case.run(pipe, "distilled", 6, callback_on_step_end=callback), expected)
            assert (handle.report.strip, other.report.strip) == (STRIP, "█·")


class Observer:
    """A plugin that watches runs, and calls the model whenever it is told something."""

    def __init__(self, calls):
        self.calls, self.told = calls, []

    @magpolicy.hookimpl
    def on_run_start(self, session):
        self.told.append("start")
        self.calls.again()

    @magpolicy.hookimpl
    def on_decision(self, session, entry):
        self.told.append(entry.decision.reason)
        self.calls.again()

    @magpolicy.hookimpl
    def on_run_end(self, session, report):
        self.told.append("end")
        self.calls.again()


@pytest.mark.filterwarnings("error::UserWarning")  # an observer that fails is named in one
def test_observers_call_the_model():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, **SKIPPING) as handle:
        calls = Calls(pipe)
        expected = case.run(pipe, "distilled", 6)
        observer = Observer(calls)
        magpolicy.manager().register(observer)
        try:
            assert torch.equal(case.run(pipe, "distilled", 6), expected)
        finally:
            magpolicy.manager().unregister(observer)
        assert handle.report.strip == STRIP
    assert observer.told == ["start", "scheduled", "scheduled", "reused", "scheduled", "reused", "reused", "end"]
    assert len(calls.made) == 8
