"""``magpolicy_diffusers.trial``: schedules carried out by real pipelines, and how far they end from the full run."""

import pytest

import magpolicy
from magpolicy import AdapterError, ArgumentError, Schedule, plan, refine

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from magpolicy_diffusers import trial  # noqa: E402

STEPS = 8
SOME = (("FluxPipeline", "distilled"), ("WanPipeline", "cfg"), ("PixArtSigmaPipeline", "cfg"), ("LTX2Pipeline", "cfg"))


def calibrated(case, pipe, way):
    with magpolicy.attach(pipe, calibrate=True) as handle:
        case.run(pipe, way, STEPS)
        return handle.calibration


def calling(case, pipe, way, **more):
    return trial(pipe, **case.ways[way].arguments(pipe), num_inference_steps=STEPS, **more)


@pytest.mark.parametrize(("cls", "way"), SOME)
def test_the_error_is_the_mean_squared_difference_of_the_latents(cls, way):
    case = PIPES[cls]
    pipe = case.make()
    schedule = plan(calibrated(case, pipe, way), steps=STEPS, speedup=2.0)
    expected = []
    for seed in (3, 5):
        full = case.run(pipe, way, STEPS, seed)
        with magpolicy.attach(pipe, schedule=schedule):
            expected.append(float((case.run(pipe, way, STEPS, seed) - full).double().square().mean()))
    run = calling(case, pipe, way, seeds=(3, 5))
    found = run(schedule)
    if cls != "LTX2Pipeline":  # which returns sound too
        assert found == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert found > 0
    assert run(schedule) == found, "the same noise each time"
    assert run(Schedule.from_mask([True] * STEPS)) == 0
    assert "__call__" not in vars(pipe.transformer)
    assert "forward" not in vars(pipe.transformer)


def test_refining_needs_no_loop_of_ones_own():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    calibration, told = calibrated(case, pipe, "distilled"), []
    run = calling(case, pipe, "distilled")
    refined = refine(calibration, run, steps=STEPS, computed=[3, 5], runs=14, progress=lambda *news: told.append(news))
    assert len(told) == refined.runs <= 14
    for schedule, error in zip(refined.schedules, refined.errors, strict=True):
        assert error == run(schedule)
    assert refined.errors[0] <= run(plan(calibration, steps=STEPS, computed=3))
    assert refined.errors == tuple(sorted(refined.errors, reverse=True))


def test_the_full_run_is_made_once_and_the_common_generator_is_left_alone():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    calls = []

    def count(pipe, step, timestep, inputs):
        calls.append(step)
        return inputs

    run = calling(case, pipe, "distilled", callback_on_step_end=count)
    before = torch.get_rng_state()
    for _ in range(2):
        run(Schedule.from_mask([True, False] * 4))
    assert calls == [*range(STEPS)] * 3
    assert torch.equal(torch.get_rng_state(), before)


def test_what_fails_leaves_the_pipeline_as_it_was():
    case = PIPES["FluxPipeline"]
    pipe = case.make()

    def failing(pipe, step, timestep, inputs):
        raise ZeroDivisionError

    for wrong, error in (({"callback_on_step_end": failing}, ZeroDivisionError), ({"colour": "red"}, TypeError)):
        with pytest.raises(error):
            calling(case, pipe, "distilled", **wrong)(Schedule.from_mask([True] * STEPS))
    run = calling(case, pipe, "distilled")
    with pytest.raises(ArgumentError, match="the schedule given has 3 steps, this run 8"):
        run(Schedule.from_mask([True] * 3))
    with magpolicy.attach(pipe, schedule=Schedule.from_mask([True] * STEPS)):
        with pytest.raises(AdapterError, match="attached already; detach"):
            run(Schedule.from_mask([True] * STEPS))
        with pytest.raises(AdapterError, match="attached already; detach"):
            calling(case, pipe, "distilled")
    assert run(Schedule.from_mask([True] * STEPS)) == 0


def test_arguments_of_no_use_are_named_before_anything_runs():
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    for wrong, message in (
        ({"generator": torch.Generator()}, "pass seeds"),
        ({"seeds": ()}, r"seeds=\(\) must be whole numbers"),
        ({"seeds": 3}, "seeds=3 must be whole numbers"),
        ({"seeds": "x"}, "seeds='x' must be"),
        ({"options": {"schedule": 1}}, "options"),
        ({"options": {"offload": "disk"}}, "offload='disk'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            calling(case, pipe, "distilled", **wrong)
    with pytest.raises(AdapterError, match="is nothing an installed adapter can drive"):
        trial(object())
