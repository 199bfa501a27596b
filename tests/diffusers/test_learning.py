"""``attach(pipe)`` alone learns from the calls that are made, on real pipelines."""

import copy
import subprocess
import sys

import pytest

import magpolicy
from magpolicy.adapter import learned

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

from pipes import PIPES  # noqa: E402

SOME = (
    ("FluxPipeline", "distilled"),
    ("StableDiffusion3Pipeline", "cfg"),
    ("WanPipeline", "cfg"),
    ("WanPipeline two experts", "cfg"),
    ("PixArtSigmaPipeline", "cfg"),
    ("LTX2Pipeline", "cfg"),
)
CASES = [pytest.param(PIPES[name], way, id=f"{name}-{way}") for name, way in SOME]
FLUX = PIPES["FluxPipeline"]
STEPS = 12


def levels_of(report):
    first = report.trace[0].stream
    return [e.sigma for e in report.trace if e.stream == first]


@pytest.mark.parametrize(("case", "way"), CASES)
def test_the_second_call_is_planned_from_what_the_first_taught(case, way):
    pipe = case.make()
    with magpolicy.attach(pipe) as handle:
        case.run(pipe, way, STEPS)
        first = handle.report
        assert "prior" in first.source
        assert first.problems == ()
        known = learned(handle.identity)
        computed = sum(entry.decision.computes for entry in first.trace)
        assert known.provenance["taught"] == {"whole": True, "full": False, "computed": computed, "runs": 1}
        assert set(known.streams) == {entry.stream for entry in first.trace}
        assert known.sigmas == pytest.approx(levels_of(first), abs=1e-5)
        case.run(pipe, way, STEPS)
        assert handle.report.source.startswith("a plan from what a run that skipped steps taught on 20")
        assert handle.report.estimated_speedup >= 2.0
        case.run(pipe, way, 9)  # another number of steps
        assert "what 2 runs that skipped steps taught" in handle.report.source
        assert handle.report.estimated_speedup >= 9 / 5


@pytest.mark.parametrize(("case", "way"), CASES)
def test_a_first_call_in_full_is_the_call_of_the_bare_pipeline_and_teaches_what_a_calibration_measures(case, way):
    bare = case.run(case.make(), way, STEPS)
    pipe = case.make()
    with magpolicy.attach(pipe, learn="first") as handle:
        assert torch.equal(case.run(pipe, way, STEPS), bare)
        assert handle.report.source.startswith("learn='first'")
        found = learned(handle.identity)
        case.run(pipe, way, STEPS)
        assert handle.report.source.startswith("a plan from what a run in full taught on 20")
        assert handle.report.advice == ""
    with magpolicy.attach(pipe, calibrate=True) as handle:
        case.run(pipe, way, STEPS)
        expected = handle.calibration
    assert found.sigmas == pytest.approx(expected.sigmas, abs=1e-5)
    for name, moments in expected.streams.items():
        assert found.streams[name].gram == pytest.approx(moments.gram, rel=1e-4, nan_ok=True)
    for key in ("model", "identity", "guidance", "scheduler"):
        assert found.provenance.get(key) == expected.provenance.get(key)


def test_an_image_that_is_changed_teaches_until_a_whole_run_does():
    case = PIPES["FluxImg2ImgPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe) as handle:
        case.run(pipe, "distilled", STEPS, strength=0.6)
        assert learned(handle.identity).provenance["taught"]["whole"] is False
        case.run(pipe, "distilled", STEPS, strength=0.6)
        assert "of a part of the schedule, taught" in handle.report.source
        case.run(pipe, "distilled", STEPS)
        assert learned(handle.identity).provenance["taught"]["whole"] is True
        case.run(pipe, "distilled", STEPS, strength=0.6)
        assert handle.report.source.startswith("a plan from what a run that skipped steps taught")


def test_guidance_in_a_part_of_the_run_is_learned_there():
    case = PIPES["WanPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, learn="first") as handle:
        case.run(pipe, "cfg in the first half", STEPS)
        known = learned(handle.identity)
        assert known.provenance["taught"]["full"] is True
        assert set(known.streams) == {"cond", "uncond"}
        case.run(pipe, "cfg in the first half", STEPS)
        assert "what a run in full taught" in handle.report.source


def test_a_call_that_raised_teaches_nothing():
    pipe = FLUX.make()

    def stop(pipe, step, timestep, kwargs):
        if step == STEPS - 2:
            raise KeyboardInterrupt
        return kwargs

    with magpolicy.attach(pipe) as handle:
        with pytest.raises(KeyboardInterrupt):
            FLUX.run(pipe, "distilled", STEPS, callback_on_step_end=stop)
        FLUX.run(pipe, "distilled", STEPS)
        assert "prior" in handle.report.source
        assert learned(handle.identity).provenance["taught"]["runs"] == 1


def test_a_lora_is_another_model():
    pipe = FLUX.make()
    with magpolicy.attach(pipe) as handle:
        FLUX.run(pipe, "distilled", STEPS)
        before = copy.deepcopy(pipe.transformer.state_dict())
        with torch.no_grad():
            for parameter in pipe.transformer.parameters():
                parameter.add_(0.01)
        FLUX.run(pipe, "distilled", STEPS)
        assert "prior" in handle.report.source
        pipe.transformer.load_state_dict(before)
        FLUX.run(pipe, "distilled", STEPS)
        assert "what a run that skipped steps taught" in handle.report.source


def test_nothing_is_written_without_learning():
    pipe = FLUX.make()
    for settings in ({"learn": False}, {"calibrate": True}, {"rule": None, "preset": "flux.1-dev"}):
        with magpolicy.attach(pipe, **settings):
            FLUX.run(pipe, "distilled", STEPS)
    assert not magpolicy.library().exists() or not list(magpolicy.library().iterdir())


@pytest.mark.parametrize("given", [True, False])
def test_loops_of_ones_own_teach(given):
    model = FLUX.make().transformer

    def loop(handle):
        x = torch.zeros(1, 4, model.config.in_channels)
        for step in range(STEPS):
            out = model(
                hidden_states=x,
                timestep=torch.tensor([1 - step / STEPS]),
                encoder_hidden_states=torch.ones(1, 3, model.config.joint_attention_dim),
                pooled_projections=torch.ones(1, model.config.pooled_projection_dim),
                img_ids=torch.zeros(4, 3),
                txt_ids=torch.zeros(3, 3),
            ).sample
            x = x - 0.1 * out

    with magpolicy.attach(model, speedup=2.0, steps=STEPS) as handle, torch.no_grad():
        for _ in range(2):
            if given:
                with handle.run():
                    loop(handle)
            else:
                loop(handle)
        assert handle.report.source.startswith("a plan from what a run that skipped steps taught")
        assert handle.report.computed == STEPS // 2


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pipes import PIPES
import magpolicy
pipe = PIPES["FluxPipeline"].make()
with magpolicy.attach(pipe) as handle:
    PIPES["FluxPipeline"].run(pipe, "distilled", 12)
    print(handle.report.source)
"""


def test_another_process_goes_on_where_this_one_left(request):
    pipe = FLUX.make()
    with magpolicy.attach(pipe):
        FLUX.run(pipe, "distilled", STEPS)
    here = str(request.path.parent)
    done = subprocess.run([sys.executable, "-c", PROGRAM, here], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("a plan from what a run that skipped steps taught on 20")
