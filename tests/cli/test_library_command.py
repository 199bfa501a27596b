"""``magpolicy library``: what is kept is listed, shown, forgotten, and carried from one library to another."""

import json
import os

import numpy as np
import pytest

import magpolicy
from magpolicy.adapter import ModelIdentity, remember

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("cattrs")

IDENTITY = ModelIdentity("FluxTransformer2DModel", "c", "org/flux", "w")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A library of one's own, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(capfd, home):
    """Runs ``library`` and returns its exit code and what it printed."""
    from magpolicy.cli import main

    def command(*args):
        code = main(["library", *map(str, args)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return command


def made(name="mine", scale=1.0):
    path = scale * np.cumsum(np.random.default_rng(0).normal(size=(6, 2, 4)), axis=0)
    known = {"identity": IDENTITY.to_dict(), "versions": {"torch": "2"}, "guidance": 3.5}
    return magpolicy.Calibration.from_residuals({"cond": path, "uncond": path**2}, name=name, provenance=known)


def test_an_empty_library_says_how_to_fill_it(run, home):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert str(home) in out
    assert "calibrate --keep" in out
    assert run("list", "--json")[1] == "[]\n"


def test_all_kinds_are_listed(run, home):
    magpolicy.keep(made())
    remember(IDENTITY, made())
    (home / "table.toml").write_text('name = "table"\nratios = [1.0, 1.1]\n')
    (home / "broken.json").write_text("{")
    code, out, err = run("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["name", "kind", "model", "repo", "streams", "steps", "samples", "learned"]
    by_name = {line.split()[0]: line.split() for line in lines[1:5]}
    assert by_name["mine"][1:4] == ["calibration", "FluxTransformer2DModel", "org/flux"]
    assert by_name["table"][1] == "preset"
    assert by_name["broken.json"][1] == "unreadable"
    learned = IDENTITY.name(["cond", "uncond"]) + "-learned"
    assert by_name[learned][1] == "learned"
    assert "broken.json is not valid JSON" in out.split("cannot be read")[1]
    rows = {row["name"]: row for row in json.loads(run("list", "--json")[1])}
    assert set(rows) == {"mine", "table", "broken.json", learned}
    assert rows["mine"]["identity"] == IDENTITY.to_dict()
    assert rows["mine"]["streams"] == ["cond", "uncond"]
    assert rows["broken.json"]["problem"]
    assert rows[learned]["learned"].startswith("20")
    assert all(os.path.exists(row["file"]) for row in rows.values())


def test_one_is_shown(run):
    file = magpolicy.keep(made())
    code, out, _ = run("show", "MINE")
    assert code == 0
    for said in ("mine", "org/flux", "guidance      3.5", "cond: ", "uncond: ", str(file), "1 sample, window 5"):
        assert said in out
    shown = json.loads(run("show", "mine", "--json")[1])
    assert shown["provenance"]["guidance"] == 3.5


def test_what_is_forgotten_is_gone(run, home):
    file = magpolicy.keep(made())
    other = magpolicy.keep(made("other"))
    code, _, err = run("forget", "other", "nobody")
    assert code == 2
    assert "nobody" in err
    assert other.exists()  # all names are looked at first
    code, out, _ = run("forget", "mine", "other", "mine")
    assert (code, out) == (0, f"removed: {file}\nremoved: {other}\n")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_one_goes_to_another_library_and_is_found_there(run, home, monkeypatch, tmp_path, ending):
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    magpolicy.keep(made())
    assert run("export", "mine", "-o", f"flux.{ending}")[0] == 0
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "theirs"))
    code, out, err = run("import", f"flux.{ending}")
    assert (code, err) == (0, "")
    assert out == f"kept: {tmp_path / 'theirs' / 'mine.json'}\n"
    assert magpolicy.preset("mine").calibration == made()
    assert [p.name for p in magpolicy.adapter.kept_for(IDENTITY)] == ["mine"]


def test_a_table_goes_too(run, home, tmp_path):
    (tmp_path / "t.toml").write_text('name = "table"\nratios = [1.0, 1.1]\nthreshold = 0.1\n')
    assert run("import", "t.toml")[0] == 0
    assert magpolicy.preset("table").threshold == 0.1
    (tmp_path / "out").mkdir()
    assert run("export", "table", "-o", "out")[0] == 0
    assert magpolicy.load_preset(tmp_path / "out" / "table.json").threshold == 0.1
    assert run("export", "table", "-o", "none/table.json")[0] == 2


def test_importing_replaces_nothing_unless_told(run, tmp_path):
    magpolicy.keep(made())
    made("mine", 2.0).save("theirs.json")
    code, _, err = run("import", "theirs.json")
    assert code == 2
    assert "'mine' is in the library, as mine.json" in err
    assert magpolicy.preset("mine").calibration == made()
    assert run("import", "theirs.json", "--name", "theirs")[0] == 0
    assert magpolicy.preset("theirs").calibration == made("", 2.0)
    assert run("import", "theirs.json", "--replace")[0] == 0
    assert magpolicy.preset("mine").calibration == made("", 2.0)
    (tmp_path / "t.json").write_text('{"name": "mine", "ratios": [1.0, 1.1]}')
    assert run("import", "t.json")[0] == 0  # a table beside the calibration
    assert run("import", "t.json")[0] == 2
    assert run("import", "t.json", "--replace")[0] == 0
    assert magpolicy.preset("mine").calibration is not None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "mime"), "did you mean mine"),
        (("show", "broken.json"), "is not valid JSON"),
        (("export", "mine", "-o", "x.txt"), "must end in .json or .safetensors"),
        (("export", "broken.json", "-o", "x.json"), "is not valid JSON"),
        (("export", "mine"), "--output"),
        (("import", "nowhere.json"), "cannot be read"),
        (("import", "a.json", "b.json", "--name", "x"), "--name is for one file"),
        (("import",), "FILE"),
        (("forget",), "NAME"),
    ],
    ids=str,
)
def test_mistakes(run, home, args, message):
    magpolicy.keep(made())
    (home / "broken.json").write_text("{")
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert len(list(home.iterdir())) == 2


def test_a_name_that_cannot_be_printed_is_listed(run):
    for name in ("\ud800", "a\nb", "\0"):
        magpolicy.keep(made(name))
    code, out, _ = run("list")
    assert code == 0
    assert len(out.splitlines()) == 4
    assert "\\ud800" in out
    assert run("list", "--json")[0] == 0


def test_names_are_completed(home):
    from magpolicy.cli._library import Name

    magpolicy.keep(made())
    assert [item.value for item in Name().shell_complete(None, None, "mi")] == ["mine"]
