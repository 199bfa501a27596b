"""The preset of a model: by repo id, by class and config, or a message that says what to pass."""

import attrs
import pytest

import magpolicy
from magpolicy import PresetError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from pipes import PIPES  # noqa: E402

from zoo import CASES  # noqa: E402

from magpolicy_diffusers._model_presets import TABLE, KnownModel, preset_of, presets_of  # noqa: E402
from magpolicy_diffusers._provenance import identity  # noqa: E402


@pytest.mark.parametrize("row", [r for r in TABLE if not r.pipelines and r.experts != 2], ids=lambda r: "-".join(r.presets))
def test_by_class_and_config(row):
    with torch.device("meta"):
        more = {"vace_layers": [0]} if "VACE" in row.model else {}
        model = getattr(diffusers, row.model)(**row.config, **more)
    if len(row.presets) == 1:
        assert preset_of(model) == row.presets[0]
    else:
        with pytest.raises(PresetError, match=f"preset='{row.presets[1]}'"):
            preset_of(model)


def test_every_row_names_presets_and_classes_that_exist():
    for row in TABLE:
        assert all(name in magpolicy.presets() for name in row.presets)
        assert row.model in CASES
        assert all(hasattr(diffusers, name) for name in row.pipelines)


def test_by_repo_id_or_the_last_part_of_a_path():
    for repo in ("black-forest-labs/FLUX.1-Kontext-dev", "/models/FLUX.1-Kontext-dev"):
        pipe = PIPES["FluxPipeline"].make()
        pipe.transformer.register_to_config(_name_or_path=repo)
        with magpolicy.attach(pipe, rule="published") as handle:
            PIPES["FluxPipeline"].run(pipe, "distilled", 9)
        assert handle.report.schedule == magpolicy.simulate("flux.1-kontext-dev", steps=9)


def test_every_alias_that_is_a_repo_id_is_found():
    model = CASES["FluxTransformer2DModel"].make()
    for name, known in magpolicy.presets().items():
        for alias in known.aliases:
            if "/" in alias:
                model.register_to_config(_name_or_path=alias)
                assert preset_of(model) == name


@pytest.mark.parametrize("cls", ["FluxTransformer2DModel", "WanTransformer3DModel", "DiTTransformer2DModel"])
def test_the_rule_on_an_unknown_model_says_what_is_close_and_to_plan_instead(cls):
    model = CASES[cls].make()
    with pytest.raises(PresetError, match=r"speedup=2\.0") as raised:
        magpolicy.attach(model, rule="published")
    assert ("close" in str(raised.value)) == (not cls.startswith("DiT"))
    assert "example" not in str(raised.value)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("source", "repo"),
    [("org/model", "org/model"), ("org/prior", "org/prior"), ("/models/unet", "unet"), ("org/flux", "org/flux")],
)
def test_a_pipeline_that_is_called_as_a_component_is_none(source, repo):
    pipe = PIPES["FluxPipeline"].make()
    pipe.register_to_config(_name_or_path=source)
    assert identity(pipe, [pipe.transformer]).repo == repo
    pipe.transformer.register_to_config(_name_or_path=f"/cache/{source}/transformer")
    assert identity(None, [pipe.transformer]).repo == repo.rsplit("/")[-1]


def test_what_is_given_wins():
    model = CASES["FluxTransformer2DModel"].make()
    model.register_to_config(_name_or_path="black-forest-labs/FLUX.1-dev")
    with magpolicy.attach(model, ratios=[1.0] * 3, threshold=1.0, max_skips=1, retention=0.0) as handle, handle.run():
        pass


KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"


@pytest.fixture
def keeping(tmp_path, monkeypatch):
    """A pipeline of a given repo id that was calibrated, its calibration kept under that id as ``mine``."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))

    def made(repo):
        pipe = PIPES["FluxPipeline"].make()
        pipe.transformer.register_to_config(_name_or_path=repo)
        with magpolicy.attach(pipe, calibrate=True) as handle:
            PIPES["FluxPipeline"].run(pipe, "distilled", 12)
            found = handle.calibration
        magpolicy.keep(attrs.evolve(found, name="mine", aliases=(repo,)))
        return pipe, found

    return made


def run(pipe, steps=12, **settings):
    with magpolicy.attach(pipe, **settings) as handle:
        PIPES["FluxPipeline"].run(pipe, "distilled", steps)
        return handle.report


@pytest.mark.parametrize("settings", [{"computed": 6}, {"speedup": 2.0}, {"error": 0.05}], ids=str)
def test_a_speed_is_all_a_user_types_once_the_model_was_calibrated(keeping, settings):
    pipe, found = keeping(KONTEXT)
    report = run(pipe, **settings)
    assert report.schedule == magpolicy.plan(found, **settings)
    assert report.source == "a plan from calibration 'mine'"


@pytest.mark.parametrize("settings", [{"rule": "published"}, {"threshold": 0.1}, {"max_skips": 2, "retention": 0.1}], ids=str)
def test_a_model_that_was_calibrated_still_has_its_published_table(keeping, settings):
    pipe, _ = keeping(KONTEXT)
    report = run(pipe, 9, **settings)
    settings.pop("rule", None)
    assert report.schedule == magpolicy.simulate(magpolicy.presets()["flux.1-kontext-dev"], steps=9, **settings)
    assert report.source == "the rule on preset 'flux.1-kontext-dev'"
    assert "by the rule on preset 'flux.1-kontext-dev'" in str(report).splitlines()


def test_a_calibrated_model_known_by_its_config_alone_keeps_that_table(keeping, monkeypatch):
    pipe, found = keeping("me/my-flux")
    here = KnownModel("FluxTransformer2DModel", ("flux.1-dev",))
    monkeypatch.setattr("magpolicy_diffusers._model_presets.TABLE", (here,))
    first, published = presets_of(pipe)
    assert (first.name, published) == ("mine", "flux.1-dev")
    assert run(pipe, rule="published").schedule == magpolicy.simulate("flux.1-dev", steps=12)
    assert run(pipe, speedup=2.0).schedule == magpolicy.plan(found, speedup=2.0)


def test_all_settings_of_the_rule_given_apply_to_the_calibration(keeping):
    pipe, found = keeping(KONTEXT)
    rule = {"threshold": 0.5, "max_skips": 2, "retention": 0.1}
    assert run(pipe, **rule).schedule == magpolicy.simulate(found, **rule)


@pytest.mark.parametrize("settings", [{}, {"forecast": "calibrated"}, {"forced": [-1]}], ids=str)
def test_a_calibration_alone_plans_for_half_of_the_steps(keeping, settings):
    pipe, found = keeping("me/my-flux")
    report = run(pipe, **settings)
    assert report.schedule == magpolicy.plan(found, speedup="balanced", **settings)
    assert report.source == "a plan from calibration 'mine'"
    with pytest.raises(magpolicy.ArgumentError, match=r"no settings of the rule were published for this model.*speedup=2\.0"):
        magpolicy.attach(pipe, rule="published")
