"""The user's folder: no name takes another's file, no broken file hides others, what is there is listed and forgotten."""

import os
import warnings

import attrs
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Calibration, PresetError, preset, presets
from magpolicy.adapter import ModelIdentity, entries, file_name, forget, keep_in, presets_in, remember

pytest.importorskip("cattrs", reason="the files extra is not installed")
PATH = np.cumsum(np.random.default_rng(0).normal(size=(3, 2, 4)), axis=0)
NAMES = ["a b", "a-b", "a/b", "A-B", "con", "CON", "nul.x", "COM1", "\0", "\ud800", "x" * 300, "x" * 299 + "y", "ä" * 300,
         ".", "..", "a.json", "a", "my.safetensors", " ", "-", "é", "e\u0301", "flux.1-dev", "../x", "ends.",
         "calibration"]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of one's own for the user's calibrations."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def made(name, scale=1.0, **more):
    return Calibration.from_residuals({"cond": PATH * scale}, name=name, **more)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(NAMES) | st.text(min_size=1, max_size=12), unique=True, min_size=1, max_size=4))
@example(names=NAMES)
def test_two_names_never_share_a_file_and_each_is_found_by_its_own(names, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MAGPOLICY_HOME", str(folder))
    files = [magpolicy.keep(made(name, 1.0 + place)) for place, name in enumerate(names)]
    assert len(set(files)) == len(names) == len(list(folder.iterdir()))
    assert {file.parent for file in files} == {folder}
    for place, name in enumerate(names):
        assert preset(name).name == name
        assert preset(name).calibration == made(name, 1.0 + place)
    again = [magpolicy.keep(made(name, 9.0 + place)) for place, name in enumerate(names)]
    assert again == files  # each replaced its own
    assert preset(names[0]).calibration == made(names[0], 9.0)


@given(st.sampled_from(NAMES) | st.text(min_size=1))
def test_a_files_name_is_one_that_every_system_takes(name):
    found = file_name(name)
    assert found == file_name(found)
    assert 0 < len(found.encode()) <= 101
    assert not set(found) & set('<>:"/\\|?*\0')
    assert found.split(".")[0].upper() not in ("CON", "NUL", "AUX", "PRN", "COM1", "LPT9")
    assert not found.endswith((".", " "))


def test_keeping_replaces_its_own_file_only(home):
    pytest.importorskip("safetensors")
    first = magpolicy.keep(made("a b"))
    moved = first.rename(home / "moved.json")
    (home / "a-b.json").write_text('{"name": "a-b", "ratios": [1.0, 1.1]}')
    assert magpolicy.keep(made("a b", 2.0)) == moved
    tensors = magpolicy.keep(made("a b", 3.0), ending=".safetensors")
    assert sorted(f.name for f in home.iterdir()) == ["a-b.json", "a-b.safetensors"]
    assert tensors.name == "a-b.safetensors"
    table = preset("a-b")
    assert table.calibration is None
    beside = magpolicy.keep(made("a-b"))  # a calibration does not take the place of a table
    assert beside.name.startswith("a-b-")
    assert {p.calibration is None for p in presets_in(home) if p.name == "a-b"} == {True, False}


def test_a_name_that_looks_like_a_file_means_the_file_where_there_is_one(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    magpolicy.keep(made("x.json"))
    assert preset("x.json").calibration == made("")
    made("other", 2.0).save(tmp_path / "x.json")
    assert preset("x.json").name == "other"
    with pytest.raises(PresetError, match="cannot be read"):
        preset("y.json")


def test_another_folder_is_kept_in_just_so(tmp_path):
    folder = tmp_path / "host" / "models"
    files = {keep_in(folder, made(name)) for name in ("a b", "a/b")}
    assert len(files) == 2
    assert {p.name for p in presets_in(folder)} == {"a b", "a/b"}
    assert "a b" not in presets()


BROKEN = {
    "bad.json": "{",
    "deep.json": '{"name": "x", "ratios": ' + "[" * 900 + "]" * 900 + "}",
    "huge.json": '{"name": "x", "ratios": [' + "1" + "0" * 400 + "]}",
    "calibrated.json": '{"kind": "magpolicy-calibration", "version": 1, "sigmas": [1' + "0" * 400 + '], "streams": {}}',
    "name.json": '{"name": 3, "ratios": [1.0]}',
    "bad.toml": "=",
    "dots.toml": "a." * 20000 + "b=1",
    "table.toml": "[" + "a." * 20000 + "b]",
    "first.json": '{"name": "x", "ratios": [1.0], "first_step": ' + "9" * 300 + "}",
    "x.safetensors": "no",
}


@pytest.mark.parametrize("name", [*BROKEN, "dangling.json", "fifo.json", "zero.json", "folder.json", "closed.json"])
def test_one_file_that_cannot_be_read_does_not_hide_the_others(home, name):
    magpolicy.keep(made("mine"))
    bad = home / name
    if name in BROKEN:
        bad.write_text(BROKEN[name])
    elif name == "dangling.json":
        bad.symlink_to("/nonexistent")
    elif name == "zero.json":
        bad.symlink_to("/dev/zero")
    elif name == "fifo.json":
        if not hasattr(os, "mkfifo"):
            pytest.skip("there are no pipes in folders here")
        os.mkfifo(bad)
    elif name == "folder.json":
        bad.mkdir()
    else:
        bad.symlink_to("/proc/1/mem" if os.path.exists("/proc/1/mem") else "/nonexistent")
    with pytest.warns(magpolicy.PresetWarning, match=name.replace(".", r"\.")):
        assert "mine" in presets()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert preset("mine").name == "mine"
    listed = {entry.file.name: entry for entry in entries()}
    assert listed[name].problem
    assert listed["mine.json"].preset is not None
    with pytest.raises(PresetError, match=name.replace(".", r"\.")):
        preset(bad)


def test_nobodys_home_is_a_clear_message_and_no_obstacle(monkeypatch):
    monkeypatch.delenv("MAGPOLICY_HOME")

    def nobody(*_, **__):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_data_path", nobody)
    with pytest.raises(PresetError, match=r"home is not known .*; set MAGPOLICY_HOME"):
        magpolicy.keep(made("x"))
    assert preset("flux").calibration is None
    assert len(presets()) > 90


def test_what_is_there_is_listed_and_forgotten(home):
    identity = ModelIdentity("Flux", "c", "org/flux", "w")
    known = {"identity": identity.to_dict()}
    kept = magpolicy.keep(made("mine", provenance=known))
    left = remember(identity, made(""))
    learned = f"{identity.name(['cond'])}-learned"
    (home / "broken.json").write_text("{")
    found = {entry.name: entry for entry in entries()}
    assert {name: (e.learned, bool(e.problem), e.identity.repo) for name, e in found.items()} == {
        "mine": (False, False, "org/flux"),
        "broken.json": (False, True, ""),
        learned: (True, False, "org/flux"),
    }
    with pytest.raises(PresetError, match=r"name='mime' is not in .*did you mean mine"):
        forget("mime")
    assert forget("MINE") == kept
    assert forget(learned) == left
    assert forget("broken.json") == home / "broken.json"
    assert entries() == ()
    with pytest.raises(PresetError, match="magpolicy library list"):
        forget("zzzz")


def test_the_name_that_tells_the_model_keeps_two_models_apart():
    flux = ModelIdentity("Flux", "c", "org/flux", "w")
    names = {flux.name(["cond"]), flux.name(["cond", "uncond"]), attrs.evolve(flux, weights="tuned").name(["cond"])}
    assert len(names) == 3
    assert all(name.startswith("flux-") for name in names)
