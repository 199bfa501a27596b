"""A user's own preset as a file: read back as written, and one clear error for everything that is none."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Curve, Preset, PresetError, load_preset, save_preset

pytest.importorskip("cattrs", reason="the files extra is not installed")
FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def presets(draw):
    length = draw(st.integers(1, 12))
    row = st.lists(st.floats(1e-6, 1e6), min_size=length, max_size=length)
    ratios = draw(st.dictionaries(text, row, min_size=1, max_size=3))
    levels = sorted(draw(st.sets(st.floats(1e-3, 1e3), min_size=length, max_size=length)), reverse=True)
    return Preset(
        name=draw(text.filter(bool)),
        curve=Curve(ratios, sigmas=draw(st.sampled_from([None, levels])), first_step=draw(st.sampled_from([0, 0, 5]))),
        family=draw(text),
        threshold=draw(st.none() | st.floats(0, 10)),
        max_skips=draw(st.none() | st.integers(0, 20)),
        retention=draw(st.none() | st.floats(0, 1)),
        semantics=draw(st.none() | st.sampled_from(magpolicy.semantics_names())),
        aliases=tuple(draw(st.lists(text, max_size=2))),
        notes=tuple(draw(st.lists(text, max_size=2))),
    )


def same(a, b):
    fields = ("name", "curve", "family", "threshold", "max_skips", "retention", "semantics", "aliases", "notes")
    return all(getattr(a, field) == getattr(b, field) for field in fields)


@FILES
@given(presets())
def test_what_is_saved_is_loaded(tmp_path, preset):
    file = tmp_path / "mine.json"
    save_preset(preset, file)
    assert same(load_preset(file), preset)
    assert load_preset(str(file)).source == {"path": str(file)}
    again = tmp_path / "again.json"
    save_preset(load_preset(file), again)
    assert again.read_bytes() == file.read_bytes()


@FILES
@given(presets())
def test_toml_says_the_same(tmp_path, preset):
    file = tmp_path / "mine.json"
    save_preset(preset, file)
    content = json.loads(file.read_text(encoding="utf-8"))
    ratios = content.pop("ratios")

    def toml_of(value):  # JSON's strings, numbers and lists are TOML's too, but for these two
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    lines = [f"{key} = {toml_of(value)}" for key, value in content.items()]
    lines += ["[ratios]", *(f"{toml_of(name)} = {toml_of(values)}" for name, values in ratios.items())]
    toml = tmp_path / "mine.TOML"
    toml.write_text("\n".join(lines), encoding="utf-8")
    assert same(load_preset(toml), preset)


@pytest.mark.parametrize("name", list(magpolicy.presets()))
def test_every_shipped_preset_can_be_saved_and_simulates_as_before(tmp_path, name):
    shipped = magpolicy.presets()[name]
    save_preset(shipped, tmp_path / "copy.json")
    copy = magpolicy.preset(tmp_path / "copy.json")
    assert same(copy, shipped)
    more = {} if shipped.threshold is not None else {"threshold": 0.12, "max_skips": 2, "retention": 0.2}
    for how in (None, shipped.semantics):
        mine = magpolicy.simulate(copy, semantics=how, expert_step=shipped.expert_step(shipped.steps), **more)
        assert mine == magpolicy.simulate(shipped, semantics=how, **more)


def test_the_smallest_file(tmp_path):
    file = tmp_path / "small.json"
    file.write_text('{"name": "small", "ratios": [1, 1.5]}', encoding="utf-8")
    preset = load_preset(file)
    assert preset.name == "small"
    assert preset.curve == Curve([1.0, 1.5])
    assert (preset.threshold, preset.max_skips, preset.retention, preset.semantics) == (None, None, None, None)
    file.with_suffix(".toml").write_text('name = "small"\nratios = [1, 1.5]\n', encoding="utf-8")
    assert same(load_preset(file.with_suffix(".toml")), preset)
    assert str(magpolicy.simulate(str(file), threshold=1, max_skips=1, retention=0)) == "2 steps █·  1 computed  2.00x"


GOOD = {"name": "mine", "ratios": {"cond": [1.0, 1.1, 0.9], "uncond": [1.0, 1.2, 0.8]}, "threshold": 0.1, "max_skips": 2}
ROW = [1.0, 1.1, 0.9]

# the change to a good file, and what the message says: the key's path and, where there is one, the value
MISTAKES = {
    "a NaN ratio": ({"ratios": [1.0, float("nan")]}, [r"ratios[1]=nan"]),
    "a NaN ratio of a stream": ({"ratios": {"cond": ROW, "uncond": [1.0, float("nan"), 1.0]}}, ["uncond", "[1]=nan"]),
    "an infinite ratio": ({"ratios": [float("inf")]}, ["ratios[0]=inf"]),
    "a negative ratio": ({"ratios": [1.0, 1.0, -0.5]}, ["ratios[2]=-0.5"]),
    "a zero ratio": ({"ratios": [0]}, ["ratios[0]=0"]),
    "a huge ratio": ({"ratios": [10**400]}, ["ratios"]),
    "no ratios": ({"ratios": []}, ["ratios"]),
    "no streams": ({"ratios": {}}, ["ratios"]),
    "a stream without ratios": ({"ratios": {"cond": []}}, ["ratios['cond']"]),
    "streams of different lengths": ({"ratios": {"cond": ROW, "uncond": ROW[:2]}}, ["ratios", "different lengths"]),
    "a ratio that is text": ({"ratios": [1.0, "1.1"]}, ["ratios[1]", "'1.1'"]),
    "a ratio of a stream that is text": ({"ratios": {"cond": [1.0, "x"]}}, ["ratios", "cond", "[1]", "'x'"]),
    "a ratio that is null": ({"ratios": [1.0, None]}, ["ratios[1]", "None"]),
    "a ratio that is true": ({"ratios": [1.0, True]}, ["ratios[1]", "True"]),
    "a ratio that is a list": ({"ratios": [[1.0]]}, ["ratios[0]"]),
    "ratios that are a number": ({"ratios": 1.0}, ["ratios"]),
    "ratios that are text": ({"ratios": "1.0"}, ["ratios"]),
    "ratios missing": ({"ratios": ...}, ["ratios"]),
    "a name missing": ({"name": ...}, ["name"]),
    "an empty name": ({"name": ""}, ["name=''"]),
    "a name that is a number": ({"name": 5}, ["name", "5"]),
    "a negative threshold": ({"threshold": -1}, ["threshold=-1"]),
    "a NaN threshold": ({"threshold": float("nan")}, ["threshold=nan"]),
    "a threshold that is text": ({"threshold": "0.1"}, ["threshold", "'0.1'"]),
    "a fraction of a skip": ({"max_skips": 2.5}, ["max_skips", "2.5"]),
    "negative skips": ({"max_skips": -1}, ["max_skips=-1"]),
    "true skips": ({"max_skips": True}, ["max_skips", "True"]),
    "a retention above 1": ({"retention": 20}, ["retention=20"]),
    "unknown semantics": ({"semantics": "mine"}, ["semantics='mine'"]),
    "semantics that are a list": ({"semantics": []}, ["semantics"]),
    "an unknown key": ({"treshold": 0.1}, ["treshold"]),
    "unknown keys": ({"treshold": 0.1, "K": 2}, ["treshold", "K"]),
    "rising noise levels": ({"sigmas": [0.5, 0.7, 0.9]}, ["sigmas[1]=0.7"]),
    "too few noise levels": ({"sigmas": [0.5]}, ["sigmas", "1 levels for 3"]),
    "a NaN noise level": ({"sigmas": [1.0, float("nan"), 0.1]}, ["sigmas[1]=nan"]),
    "noise levels that are text": ({"sigmas": "1"}, ["sigmas"]),
    "a first step before the run": ({"first_step": -1}, ["first_step=-1"]),
    "an alias that is a number": ({"aliases": ["a", 5]}, ["aliases", "['a', 5]"]),
    "aliases that are text": ({"aliases": "mine"}, ["aliases"]),
    "notes that are a table": ({"notes": {"a": 1}}, ["notes"]),
    "a family that is null": ({"family": None}, ["family"]),
    "too many ratios": ({"ratios": [1.0] * 100_001}, ["ratios", "100001 entries"]),
    "ratios that are all text": ({"ratios": ["a" * 50] * 10_000}, ["ratios[0]", "'aaa"]),
    "a text as long as a book": ({"threshold": "x" * 1_000_000}, ["threshold", "'xxx"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_clear_error_with_the_keys_path(tmp_path, mistake):
    change, words = MISTAKES[mistake]
    content = {key: value for key, value in (GOOD | change).items() if value is not ...}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    message = error_of(file)
    for word in words:
        assert word in message


def error_of(file):
    with pytest.raises(PresetError) as caught:
        load_preset(file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert len(message) < 700 + len(str(file))
    return message


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.json", b"", "not valid JSON"),
        ("cut.json", b'{"name": "mine", "ratios": [1.0', "not valid JSON"),
        ("list.json", b"[1.0, 1.1]", "preset"),
        ("number.json", b"5", "preset"),
        ("null.json", b"null", "preset"),
        ("text.json", b'"mine"', "preset"),
        ("deep.json", b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
        ("deep_ratios.json", b'{"name": "a", "ratios": ' + b"[" * 500 + b"1" + b"]" * 500 + b"}", "ratios"),
        ("deep_table.json", b'{"name": "a", "ratios": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "ratios"),
        ("long_number.json", b'{"name": "a", "ratios": [' + b"9" * 5000 + b"]}", "JSON"),
        ("latin1.json", '{"name": "café"}'.encode("latin-1"), "save it as UTF-8"),
        ("zero.json", b"\0" * 100, "not valid JSON"),
        ("empty.toml", b"", "name"),
        ("json.toml", b'{"name": "mine"}', "not valid TOML"),
        ("nan.toml", b'name = "a"\nratios = [1.0, nan]', "ratios[1]=nan"),
        ("date.toml", b'name = "a"\nratios = [1.0]\nthreshold = 2026-01-01', "threshold"),
        ("deep.toml", b"a = " + b"[" * 100_000 + b"]" * 100_000, "not valid TOML"),
        ("huge.json", b" " * 4_000_001, "4000001 bytes"),
        ("no_suffix", b"{", "not valid JSON"),
    ],
)
def test_files_that_are_no_preset(tmp_path, name, content, word):
    file = tmp_path / name
    file.write_bytes(content)
    assert word in error_of(file)


def test_files_that_cannot_be_read(tmp_path):
    assert "cannot be read" in error_of(tmp_path / "missing.json")
    (tmp_path / "folder.json").mkdir()
    assert "cannot be read" in error_of(tmp_path / "folder.json")
    with pytest.raises(PresetError, match="cannot be read"):
        magpolicy.simulate(str(tmp_path / "missing.json"))
    with pytest.raises(PresetError, match="cannot be read"):
        load_preset("a\0b.json")


def test_a_preset_is_saved_as_json_only(tmp_path):
    preset = Preset(name="mine", curve=Curve([1.0]))
    with pytest.raises(PresetError, match=r"\.json"):
        save_preset(preset, tmp_path / "mine.toml")
    assert list(tmp_path.iterdir()) == []


def test_a_preset_that_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(PresetError, match="threshold=-1"):
        save_preset(Preset(name="mine", curve=Curve([1.0]), threshold=-1), tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_without_cattrs_the_error_names_the_extra(tmp_path, suffix):
    file = tmp_path / f"mine{suffix}"
    file.write_text('{"name": "a", "ratios": [1.0]}' if suffix == ".json" else 'name = "a"\nratios = [1.0]')
    code = f"""
import sys
sys.modules["cattrs"] = None
import magpolicy
try:
    magpolicy.load_preset({str(file)!r})
except magpolicy.MissingExtraError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.stdout.strip() == "cattrs is needed here; pip install 'magpolicy[files]'", done.stderr
