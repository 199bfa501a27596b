"""Calibrations in files: what is saved is read back, what is broken is named, and the user's own are found."""

import json
import os
import sys

import attrs
import numpy as np
import pytest
from hypothesis import given, settings

import magpolicy
from magpolicy import Calibration, PresetError, load_calibration, plan, preset, presets
from magpolicy.testing import strategies

FORMS = ("json", "safetensors")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of one's own for the user's calibrations."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MAGPOLICY_HOME", str(folder))
    return folder


def example(**more):
    path = np.cumsum(np.random.default_rng(0).normal(size=(8, 2, 4)), axis=0)
    return Calibration.from_residuals({"cond": path, "uncond": path**2}, window=4, **more)


def saved(tmp_path, form="json", **more):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    file = tmp_path / f"model.{form}"
    example(**more).save(file)
    return file


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(found=strategies.calibrations())
def test_what_is_saved_is_read_back(form, found, tmp_path_factory):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    found = attrs.evolve(found, name="model", aliases=("org/model",), provenance={"model": "m", "sizes": [1, 2]})
    file = tmp_path_factory.mktemp("saved") / f"x.{form}"
    for one in (found, Calibration.merge([found, found])):
        one.save(file)
        again = load_calibration(file)
        assert again == one
        assert (again.name, again.aliases, again.provenance) == (one.name, one.aliases, one.provenance)
        assert again.merged == one.merged


def test_a_file_is_usable_wherever_a_preset_is(tmp_path):
    pytest.importorskip("cattrs")
    file = saved(tmp_path, name="mine")
    found = load_calibration(file)
    assert plan(str(file), speedup=2) == plan(file, speedup=2) == plan(found, speedup=2) == plan(preset(file), speedup=2)
    assert preset(file).calibration == found
    rule = {"threshold": 0.5, "max_skips": 2, "retention": 0.1}
    assert magpolicy.simulate(file, **rule, forecast="calibrated") == magpolicy.simulate(found, **rule)
    with magpolicy.Session(str(file), speedup=2) as session:
        assert session.schedule == plan(found, speedup=2)


@pytest.mark.parametrize("form", FORMS)
def test_the_users_own_are_listed_and_found_by_name_alias_and_model(form, home):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    assert magpolicy.library() == home
    before = set(presets())
    kept = magpolicy.keep(
        example(name="My model", aliases=("Flux.1-Dev",), provenance={"model": "org/model"}), ending=f".{form}"
    )
    assert kept == home / f"My-model.{form}"
    assert set(presets()) - before == {"My model"}
    for name in ("my model", "ORG/model", "flux.1-dev"):  # one's own comes before what was published
        assert preset(name).name == "My model"
    assert presets()["My model"].calibration == example()
    assert presets()["flux.1-dev"].calibration is None
    kept.unlink()
    assert set(presets()) == before
    assert preset("flux.1-dev").calibration is None


def test_by_a_name_that_both_have_the_rule_goes_by_the_published_table_and_a_plan_by_the_calibration(home, caplog):
    published = magpolicy.simulate("flux.1-dev", steps=20), magpolicy.simulate("flux.1-dev", threshold=0.3)
    mine = example(name="mine", aliases=("flux.1-dev",))
    magpolicy.keep(mine)
    with caplog.at_level("INFO", "magpolicy"):
        assert (magpolicy.simulate("flux.1-dev", steps=20), magpolicy.simulate("flux.1-dev", threshold=0.3)) == published
    assert "by the rule on preset 'flux.1-dev'; calibration 'mine' plans with speedup=2.0" in caplog.messages[0]
    with magpolicy.Session("flux.1-dev", steps=20) as session:
        assert session.steps == 20
    assert plan("flux.1-dev", speedup=2.0) == plan(mine, speedup=2.0)
    with magpolicy.Session("flux.1-dev", speedup=2.0) as session:
        assert session.schedule == plan(mine, speedup=2.0)
    rule = {"threshold": 0.5, "max_skips": 2, "retention": 0.1}
    assert magpolicy.simulate("flux.1-dev", **rule) == magpolicy.simulate(mine, **rule)
    with pytest.raises(magpolicy.ArgumentError, match="calibration 'mine' carries no settings of the rule"):
        magpolicy.simulate("mine")


def test_an_adapter_may_name_several_presets(home):
    """The hook ``preset_for`` of one that knows plain strings."""

    class Knows:
        @magpolicy.hookimpl
        def preset_for(self, target):
            return ["mine", "flux.1-dev"] if target == "model" else None

        @magpolicy.hookimpl
        def attach(self, target, request):
            return request if target == "model" else None

    magpolicy.keep(example(name="mine"))
    plugin = Knows()
    manager = magpolicy.manager()
    manager.register(plugin)
    try:
        assert magpolicy.attach("model", rule="published").config.preset == preset("flux.1-dev")
        assert magpolicy.attach("model").config.preset == preset("mine")
        assert magpolicy.attach("model", computed=4).config.preset == preset("mine")
    finally:
        manager.unregister(plugin)


def test_a_broken_file_among_the_users_own_is_left_out_with_a_warning(home):
    home.mkdir()
    (home / "broken.json").write_text("{")
    (home / "notes.txt").write_text("not a preset")
    with pytest.warns(magpolicy.PresetWarning, match=r"broken\.json is not valid JSON.*left out"):
        found = dict(presets())
    assert "broken" not in found
    assert preset("flux").name


def test_the_folder_is_where_the_desktop_says(monkeypatch, tmp_path):
    monkeypatch.delenv("MAGPOLICY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert magpolicy.library() == tmp_path / "magpolicy"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert magpolicy.library() == tmp_path / "me" / ".local" / "share" / "magpolicy"


def test_a_folder_in_the_place_for_linux_is_used_on_every_system(monkeypatch, tmp_path):
    monkeypatch.delenv("MAGPOLICY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    system = tmp_path / "Application Support" / "magpolicy"
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: system)
    assert magpolicy.library() == system
    (tmp_path / "share" / "magpolicy").mkdir(parents=True)
    assert magpolicy.library() == tmp_path / "share" / "magpolicy"
    system.mkdir(parents=True)
    assert magpolicy.library() == system


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a model/of mine: 2", "a-model-of-mine-2.json"),
        ("größe_1.5+x", "größe_1.5+x.json"),
        ("//", "calibration.json"),
    ],
)
def test_a_name_becomes_one_of_a_file(home, name, file):
    assert magpolicy.keep(attrs.evolve(example(), name=name)).name == file
    assert preset(name).name == name


def test_keeping_needs_a_name_and_a_folder(home):
    with pytest.raises(PresetError, match="name=''"):
        magpolicy.keep(example())
    home.write_text("in the way")
    with pytest.raises(PresetError, match="cannot be made"):
        magpolicy.keep(example(name="x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "kind must be 'magpolicy-calibration'"),
        ({"version": 2}, "version=2 is not 1; update magpolicy"),
        ({"version": None}, "version=None is not 1"),
        ({"extra": 1}, "'extra' is not known; the keys are aliases"),
        ({"sigmas": ...}, "'sigmas' is missing"),
        ({"sigmas": "x"}, "sigmas='x' must be a list"),
        ({"sigmas": [1.0, 0.5]}, "8 evaluations, sigmas has 2"),
        ({"streams": {}}, "streams={} must map"),
        ({"streams": {"a": 3}}, "streams.a=3 must be a mapping"),
        ({"streams": {"a": {"gram": [[1]]}}}, "'cosine' in streams.a is missing"),
        ({"streams": {"a": {"gram": [["x"]], "ratios": [1], "spread": [0], "cosine": [0]}}}, "streams.a.'x' is not a number"),
        ({"streams": {"a": {"gram": [[1]], "ratios": [-1], "spread": [0], "cosine": [0]}}}, r"streams.a.ratios\[0\]=-1"),
        ({"streams": {"a": {"gram": "gram.9", "ratios": [1], "spread": [0], "cosine": [0]}}}, "table 'gram.9' is missing"),
        ({"cross": [{"streams": ["cond", "uncond"]}]}, r"'products' in cross\[0\] is missing"),
        ({"cross": [{"streams": ["cond"], "products": []}]}, "holds no calibration"),
        ({"name": 3}, "name=3 must be a str"),
        ({"provenance": []}, "provenance=.* must be a dict"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, change, message):
    file = saved(tmp_path)
    content = json.loads(file.read_text()) | change
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    with pytest.raises(PresetError, match=message) as caught:
        load_calibration(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2]", b"null", b"8" * 40, b"{" * 5000])
def test_files_of_other_things_are_refused(tmp_path, form, content):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    file = tmp_path / f"x.{form}"
    file.write_bytes(content)
    with pytest.raises(PresetError, match="x"):
        load_calibration(file)
    with pytest.raises(PresetError, match="cannot be read"):
        load_calibration(tmp_path / f"missing.{form}")


def test_a_huge_file_is_refused(tmp_path):
    file = tmp_path / "x.json"
    with file.open("wb") as stream:
        stream.truncate(300_000_000)  # sparse: takes no room
    with pytest.raises(PresetError, match=r"300000000 bytes, a calibration in \.json has at most"):
        load_calibration(file)


@pytest.mark.parametrize("form", FORMS)
def test_what_json_cannot_hold_is_refused_and_leaves_no_file(tmp_path, form):
    if form == "safetensors":
        pytest.importorskip("safetensors")
    with pytest.raises(PresetError, match=r"provenance=.* must hold what JSON can"):
        example(provenance={"model": object()}).save(tmp_path / f"x.{form}")
    with pytest.raises(PresetError, match=r"must end in \.json or \.safetensors; try x\.json"):
        example().save(tmp_path / "x.pt")
    with pytest.raises(PresetError, match="cannot be written"):
        example().save(tmp_path / "nowhere" / f"x.{form}")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    file = saved(tmp_path)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PresetError, match="No space left"):
        example(name="other").save(file)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["model.json"]


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        example().save(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX")
def test_a_saved_file_has_the_usual_permissions(tmp_path):
    other = tmp_path / "other"
    other.write_text("")
    assert saved(tmp_path).stat().st_mode == other.stat().st_mode


def test_the_extra_is_named_where_safetensors_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(magpolicy.MissingExtraError, match=r"pip install 'magpolicy\[files\]'"):
        example().save(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"x")
    with pytest.raises(magpolicy.MissingExtraError, match="files"):
        load_calibration(tmp_path / "y.safetensors")
    assert [f.name for f in tmp_path.iterdir()] == ["y.safetensors"]
