"""A calibration that was kept is found again by the model alone: also after a restart, elsewhere, and beside its sisters."""

import copy
import subprocess
import sys

import attrs
import pytest

import magpolicy

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
pytest.importorskip("cattrs", reason="the files extra is not installed")

from pipes import PIPES  # noqa: E402

from nets import Rows  # noqa: E402

from magpolicy.adapter import ModelIdentity, remember  # noqa: E402
from magpolicy_diffusers._model_presets import kept_of  # noqa: E402

FLUX = PIPES["FluxPipeline"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of one's own for the user's calibrations."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def calibrated(pipe, case=FLUX, guidance="distilled", steps=12):
    with magpolicy.attach(pipe, calibrate=True) as handle:
        case.run(pipe, guidance, steps)
        return handle.calibration


def planned(pipe, **settings):
    with magpolicy.attach(pipe, speedup=2.0, **settings) as handle:
        FLUX.run(pipe, "distilled", 12)
        return handle.report


def names(target):
    return [preset.name for preset in kept_of(target)]


def test_what_a_handle_measured_is_kept_and_found_with_no_more_words(home):
    pipe = FLUX.make()
    found = calibrated(pipe)
    identity = ModelIdentity.from_dict(found.provenance["identity"])
    assert (identity.model, bool(identity.config), bool(identity.weights)) == ("FluxTransformer2DModel", True, True)
    magpolicy.keep(found)
    report = planned(pipe)
    assert report.source == f"a plan from calibration {found.name!r}"
    assert report.schedule == magpolicy.plan(found, speedup=2.0)
    assert names(pipe.transformer) == [found.name]  # the model by itself, in a loop of one's own


def test_it_is_found_by_another_process_that_loads_the_model_from_its_folder(home, tmp_path):
    pipe = FLUX.make()
    pipe.transformer.save_pretrained(tmp_path / "flux" / "transformer")
    found = calibrated(pipe)
    magpolicy.keep(found)
    script = f"""
import diffusers, magpolicy
model = diffusers.FluxTransformer2DModel.from_pretrained({str(tmp_path / "flux")!r}, subfolder="transformer")
with magpolicy.attach(model, speedup=2.0, steps=12) as handle:
    print(magpolicy.adapter.kept_for(handle.identity)[0].name, handle.identity.repo)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said == [found.name, "flux"]


def test_a_model_is_found_by_weights_then_by_repo_or_folder_then_by_class_and_config(tmp_path):
    pipe = FLUX.make()
    pipe.transformer.register_to_config(_name_or_path="me/my-flux")
    magpolicy.keep(calibrated(pipe))
    (mine,) = names(pipe)
    assert mine.startswith("my-flux-")

    tuned = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
    for repo, near in (("me/my-flux", 2), ("me/other", 1), (str(tmp_path / "elsewhere" / "transformer"), 1)):
        tuned.register_to_config(_name_or_path=repo)
        (found,) = kept_of(tuned)
        with magpolicy.attach(tuned, calibrate=True) as handle:
            assert handle.identity.nearness(ModelIdentity.of(found.calibration)) == near
    (other,) = (FLUX.make().transformer for _ in range(1))
    larger = type(other).from_config({**other.config, "num_single_layers": other.config.num_single_layers + 1})
    assert names(larger) == []
    larger.register_to_config(_name_or_path="me/my-flux")  # of the same repo, such as a pruned one
    assert names(larger) == [mine]


@pytest.mark.parametrize("folder", ["/models/my-flux", "/hub/models--me--my-flux/snapshots/0123/transformer"])
def test_a_copy_of_a_repo_is_known_by_its_folder(folder):
    pipe = FLUX.make()
    pipe.transformer.register_to_config(_name_or_path=folder)
    found = calibrated(pipe)
    assert found.provenance["repo"] in ("my-flux", "me/my-flux")
    assert found.name.startswith("my-flux-")
    assert "/models/" not in str(found.provenance)


def test_each_model_keeps_its_own_whatever_they_have_in_common(home):
    one, other = FLUX.make(), FLUX.make()
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.add_(0.01)
    files = {magpolicy.keep(calibrated(pipe)) for pipe in (one, other, one)}
    assert len(files) == 2
    assert names(one)[0] != names(other)[0]
    assert set(names(one)) == set(names(other))


def test_two_experts_are_one_model_in_their_pipeline_and_two_by_themselves(home):
    case = PIPES["WanPipeline two experts"]
    pipe = case.make()
    assert pipe.transformer_2 is not None
    found = calibrated(pipe, case, "cfg", 8)
    assert found.provenance["identity"]["part"] == "transformer+transformer_2"
    magpolicy.keep(found)
    assert names(pipe) == [found.name]
    experts = pipe.transformer, pipe.transformer_2
    assert [names(expert) for expert in experts] == [[], []]
    for expert in experts:
        with magpolicy.attach(expert, calibrate=True, steps=4) as handle:
            identity = handle.identity
        magpolicy.keep(attrs.evolve(found, name=identity.name(), provenance={"identity": identity.to_dict()}))
        assert names(expert)[0] == identity.name()
    assert len(list(home.iterdir())) == 3


def test_what_runs_left_serves_until_the_user_keeps_one():
    pipe = FLUX.make()
    found = calibrated(pipe)
    identity = ModelIdentity.from_dict(found.provenance["identity"])
    remember(identity, found)
    assert planned(pipe).schedule == magpolicy.plan(found, speedup=2.0)
    magpolicy.keep(found)
    assert names(pipe) == [found.name, f"{found.name}-learned"]


def test_a_lora_that_is_loaded_makes_another_model_of_the_same_repo():
    peft = pytest.importorskip("peft")
    pipe = FLUX.make()
    magpolicy.keep(calibrated(pipe))
    (plain,) = names(pipe)
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    assert names(pipe) == [plain]  # near enough
    found = calibrated(pipe)
    assert found.name != plain
    magpolicy.keep(found)
    assert names(pipe) == [found.name, plain]


def test_a_module_in_a_loop_of_ones_own_is_found_too():
    net = Rows()
    with magpolicy.attach(net, calibrate=True) as handle, handle.run(steps=6), torch.no_grad():
        for step in range(6):
            net(torch.full((1, 4, 8), 1.0 - step / 6))
    magpolicy.keep(handle.calibration)
    with magpolicy.attach(net, speedup=2.0, steps=6) as handle, handle.run(), torch.no_grad():
        for step in range(6):
            net(torch.full((1, 4, 8), 1.0 - step / 6))
    assert handle.report.source.startswith("a plan from calibration 'Rows-")


@pytest.mark.parametrize("model_alone", [False, True])
def test_a_calibration_of_another_model_is_refused_before_anything_is_patched(model_alone):
    case = PIPES["WanPipeline"]
    wan, flux = case.make(), FLUX.make()
    found = calibrated(wan, case, "cfg", 6)
    target = flux.transformer if model_alone else flux
    for given in ({"calibration": found}, {"preset": found}, {"curve": found}):
        with pytest.raises(magpolicy.ArgumentError, match="measured on a WanTransformer3DModel, target is a FluxTransformer2D"):
            magpolicy.attach(target, speedup=2.0, **given)
    assert "forward" not in vars(flux.transformer)
    magpolicy.keep(attrs.evolve(found, aliases=("me/flux",)))
    flux.transformer.register_to_config(_name_or_path="me/flux")
    assert names(target) == []  # nor is it chosen


def test_streams_of_a_loop_of_ones_own_are_not_those_of_a_pipeline():
    pipe = FLUX.make()
    found = calibrated(pipe)
    renamed = {"x": found.streams["cond"], "y": found.streams["cond"]}
    provenance = {key: value for key, value in found.provenance.items() if key != "pipeline"}
    own = attrs.evolve(found, streams=renamed, cross={}, provenance=provenance)
    with pytest.raises(magpolicy.ArgumentError, match="has the streams x, y, those of target are cond and uncond"):
        magpolicy.attach(pipe, calibration=own, speedup=2.0)
    with magpolicy.attach(pipe.transformer, calibration=own, speedup=2.0, steps=4) as handle:
        assert handle.scope == "stack"


def test_the_report_says_in_what_a_run_differs_from_its_calibration():
    pipe = FLUX.make()
    found = calibrated(pipe)
    assert found.provenance["stack"] == pipe_stack(pipe)
    assert planned(pipe, calibration=found).problems == ()
    pipe.scheduler = type("Another", (type(pipe.scheduler),), {}).from_config(pipe.scheduler.config)
    report = planned(pipe, calibration=found, blocks=pipe.transformer.single_transformer_blocks)
    first = "the calibration is of scheduler FlowMatchEulerDiscreteScheduler, this run has Another"
    assert first in report.problems
    assert any(line.startswith("the calibration is of the block stack") for line in report.problems)
    assert first in str(report).splitlines()


def test_the_report_says_that_guidance_was_not_calibrated():
    case = PIPES["WanPipeline"]
    pipe = case.make()
    found = calibrated(pipe, case, "cfg", 8)
    alone = attrs.evolve(found, streams={"cond": found.streams["cond"]}, cross={})
    with magpolicy.attach(pipe, calibration=alone, speedup=2.0) as handle:
        case.run(pipe, "cfg", 8)
    assert handle.report.problems == ("the calibration has no stream 'uncond', which goes by that of 'cond'",)
    other = attrs.evolve(found, provenance={**found.provenance, "guidance": 1.5})
    with magpolicy.attach(pipe, calibration=other, speedup=2.0) as handle:
        case.run(pipe, "cfg", 8)
    assert any(line.startswith("the calibration is of guidance 1.5, this run has") for line in handle.reports[0].problems)


def pipe_stack(pipe):
    model = pipe.transformer
    double, single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    return f"{double} FluxTransformerBlock, {single} FluxSingleTransformerBlock"


def test_what_a_call_writes_into_a_config_is_not_the_model():
    case = PIPES["SkyReelsV2DiffusionForcingPipeline"]
    pipe = case.make()
    with magpolicy.attach(pipe, calibrate=True) as handle:
        before = handle.identity
        pipe.transformer._set_ar_attention(pipe.transformer.config.num_frame_per_block + 1)
        assert handle.identity == before
