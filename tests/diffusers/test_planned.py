"""``attach(pipe, speedup=...)`` and ``attach(pipe, calibrate=True)`` on real pipelines."""

import json
import warnings

import pytest

import magpolicy
from magpolicy import RunError, plan

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

SOME = (
    ("FluxPipeline", "distilled"),
    ("WanPipeline", "cfg"),
    ("StableDiffusion3Pipeline", "cfg"),
    ("PixArtSigmaPipeline", "cfg"),
    ("LTX2Pipeline", "cfg"),
)
CASES = [pytest.param(pipe, way, id=f"{cls}-{way}") for cls, way in SOME for pipe in PIPES.values() if pipe.cls == cls]


def calibrated(case, way, steps, **settings):
    pipe = case.make()
    with magpolicy.attach(pipe, calibrate=True, **settings) as handle:
        case.run(pipe, way, steps)
        return handle.calibration


def levels_of(report):
    first = report.trace[0].stream
    return [e.sigma for e in report.trace if e.stream == first]


def errors_of(schedule):
    rows = zip(schedule.coefficients, schedule.modelled, schedule.checks, strict=True)
    return dict(zip(schedule.streams, rows, strict=True))


@pytest.mark.parametrize(("case", "way"), CASES)
def test_each_call_follows_the_plan_for_its_own_steps(case, way):
    calibration = calibrated(case, way, 12)
    pipe = case.make()
    with magpolicy.attach(pipe, calibration=calibration, speedup=2.0) as handle:
        for steps in (12, 9):
            case.run(pipe, way, steps)
            report = handle.report
            expected = plan(calibration, sigmas=levels_of(report), speedup=2.0)
            assert report.schedule == expected
            assert report.estimated_speedup >= 2.0
            assert errors_of(report.schedule) == errors_of(expected)
            assert magpolicy.expected_errors(calibration, report.schedule) == magpolicy.expected_errors(calibration, expected)
            rows = dict(zip(expected.streams, expected.coefficients, strict=True))
            assert report.forecasts == sum(bool(c) for row in rows.values() for c in row)


@pytest.mark.parametrize(("case", "way"), CASES)
def test_a_calibration_says_where_it_comes_from(case, way, tmp_path):
    calibration = calibrated(case, way, 6)
    about = calibration.provenance
    assert calibration.steps == 6
    assert about["pipeline"] == case.cls
    assert about["model"] == next(iter(case.denoisers.values()))
    assert about["dtype"] == "float32"
    assert about["scheduler"]
    assert about["latents"]
    assert set(about["versions"]) == {"magpolicy", "torch", "diffusers"}
    json.dumps(about)
    if way == "cfg":
        assert set(calibration.streams) == {"cond", "uncond"}
        assert list(calibration.cross) == [tuple(calibration.streams)]
    else:
        assert "guidance" not in about, "a distilled model's scale is no guidance"


def test_the_scale_of_guidance_is_that_of_the_call():
    case = PIPES["WanPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, calibrate=True) as handle:
        case.run(pipe, "cfg", 4, guidance_scale=2.5)
        assert handle.calibration.provenance["guidance"] == 2.5
        case.run(pipe, "no guidance", 4)
        assert "guidance" not in handle.calibration.provenance


def test_moments_are_the_pipelines_own():
    """Against residuals taken with torch's own hooks on the bare pipeline."""
    from zoo import CASES as ZOO
    from zoo._bare import Watch

    case = PIPES["FluxPipeline"]
    pipe = case.make()
    seen = Watch(ZOO["FluxTransformer2DModel"], pipe.transformer)
    residuals = []
    original = pipe.transformer.forward

    def forward(*args, **kwargs):
        seen.entered, seen.left = [], []
        result = original(*args, **kwargs)
        residuals.append(seen.residuals[0].double())
        return result

    pipe.transformer.forward = forward
    with seen.watching():
        case.run(pipe, "distilled", 6)
    (found,) = calibrated(case, "distilled", 6, window=2).streams.values()
    for i in range(6):
        for k in range(min(i, 2) + 1):
            assert found.gram[i, k] == pytest.approx(float((residuals[i] * residuals[i - k]).mean()), rel=1e-4)


def test_a_model_in_a_loop_of_ones_own():
    case = PIPES["FluxPipeline"]
    calibration = calibrated(case, "distilled", 8)
    pipe = case.make()
    with magpolicy.attach(pipe.transformer, calibration=calibration, speedup=2.0, steps=8) as handle:
        case.run(pipe, "distilled", 8)
        assert handle.report.computed == 4
        assert handle.report.schedule == plan(calibration, steps=8, speedup=2.0)


@pytest.mark.parametrize("way", ["interrupted", "failed"])
def test_a_run_that_was_stopped_yields_none_and_says_how_far_it_got(way):
    case = PIPES["FluxPipeline"]
    pipe = case.make()

    def stop(pipe, step, timestep, inputs):
        if step == 2:
            if way == "failed":
                raise ZeroDivisionError
            pipe._interrupt = True
        return inputs

    with magpolicy.attach(pipe, calibrate=True) as handle:
        try:
            case.run(pipe, "distilled", 6, callback_on_step_end=stop)
        except ZeroDivisionError:
            assert way == "failed"
        with pytest.raises(RunError, match="step 3 of 6"):
            _ = handle.calibration
        case.run(pipe, "distilled", 6)
        assert handle.calibration.steps == 6


def test_image_to_image_plans_the_steps_it_runs():
    case = next(p for p in PIPES.values() if p.strength and p.cls.startswith("Flux"))
    way = next(iter(case.ways))
    calibration = calibrated(case, way, 12)
    pipe = case.make()
    with magpolicy.attach(pipe, calibration=calibration, speedup=2.0) as handle:
        case.run(pipe, way, 20, strength=0.6)
        report = handle.report
    expected = plan(calibration, sigmas=pipe.scheduler.sigmas.tolist(), part=(8, 20), speedup=2.0)
    assert report.schedule.first_step == 8
    assert report.schedule.mask == expected.mask
    assert report.computed == 6
    assert report.forecasts == sum(map(bool, expected.coefficients[0]))


@pytest.mark.parametrize(("case", "way"), CASES)
def test_an_unknown_model_needs_nothing_at_all(case, way):
    """Half of the steps are skipped and forecast, by what flow models have in common."""
    pipe = case.make()
    with magpolicy.attach(pipe) as handle:
        case.run(pipe, way, 20)
        report = handle.report
    assert report.computed == 10
    assert report.forecasts == sum(bool(c) for row in report.schedule.coefficients for c in row)
    # A first skip may have one residual. Random weights make residuals that do not keep their direction, which runs notice.
    assert report.forecasts + report.held.get("doubtful", 0) >= report.reasons["reused"] - len(report.schedule.streams)
    assert report.source == "a plan from the general prior, norms taken for constant"
    assert set(report.schedule.masks) == set(plan(None, sigmas=report.schedule.sigmas, speedup=2.0).masks)


def test_one_step_then_many():
    """A server's warm-up, image to image of low strength: no target is missed with an error inside of the pipeline."""
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, speedup=3.0) as handle:
        with pytest.warns(magpolicy.PlanWarning, match="speedup=3 cannot be had in a run of one step: every step computes"):
            case.run(pipe, "distilled", 1)
        assert handle.report.computed == 1
        case.run(pipe, "distilled", 12)
        assert handle.report.computed == 4


def test_a_known_model_needs_nothing_but_a_speed():
    """Its published ratios say how long its residuals are, and the general prior how they turn: skips forecast."""
    case = PIPES["FluxPipeline"]
    pipe = case.make()
    pipe.transformer.register_to_config(_name_or_path="black-forest-labs/FLUX.1-dev")
    with magpolicy.attach(pipe, speedup=2.5) as handle:
        case.run(pipe, "distilled", 20)
        report = handle.report
    assert report.computed == 8
    assert report.forecasts == sum(map(bool, report.schedule.coefficients[0]))
    assert report.forecasts + report.held.get("doubtful", 0) > 10
    assert report.source == "a plan from the general prior, norms of preset 'flux.1-dev'"
    assert report.schedule == plan("flux.1-dev", sigmas=report.schedule.sigmas, speedup=2.5)
    assert report.schedule.sigmas == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())


@pytest.mark.parametrize("cls", ["FluxImg2ImgPipeline", "StableDiffusion3Img2ImgPipeline"])
@pytest.mark.parametrize(
    "settings",
    [{"speedup": 2.5}, {"speedup": 4.0, "safeguard": True}, {"preset": "flux.1-dev"}, {"schedule": [1, 0, 0, 1, 0, 0]}],
    ids=str,
)
def test_image_to_image_of_any_strength(cls, settings):
    """No number of steps and no strength is an error inside of the call; what cannot be had is told once for each run."""
    case = PIPES[cls]
    way, pipe = next(iter(case.ways)), case.make()
    if "schedule" in settings:
        settings = {"schedule": magpolicy.Schedule.from_mask(settings["schedule"])}
    with magpolicy.attach(pipe, **settings) as handle:
        for steps, strength in [(1, 1.0), (4, 0.26), (4, 0.5), (8, 0.3), (8, 1.0)]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", magpolicy.PlanWarning)
                case.run(pipe, way, steps, strength=strength)
            said = [str(w.message) for w in caught if w.category is magpolicy.PlanWarning]
            report = handle.report
            ran = len({entry.step for entry in report.trace})
            assert len(said) <= 1
            assert set(said) <= set(report.problems)
            if "speedup" in settings:  # what the rule decides, or the schedule given, stands
                assert report.computed >= min(2, ran)
