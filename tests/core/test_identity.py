"""Which model a calibration belongs to: how near models are, what is kept under an identity, and how it is found again."""

import os
import warnings

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import magpolicy
from magpolicy import Calibration
from magpolicy.adapter import ModelIdentity, config_digest, kept_for, learned, remember, repo_and_part
from magpolicy.catalog import _learned

MODEL = ModelIdentity("FluxTransformer2DModel", "c0", "org/flux", "w0")
TEXTS = st.text(max_size=8)
IDENTITIES = st.builds(ModelIdentity, *[st.sampled_from(["", "a", "b"])] * 5)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder of one's own, and a process that was told nothing yet."""
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    _learned._told.clear()
    return tmp_path / "home"


def example(identity=None, streams=("cond",), seed=0, **more):
    path = np.cumsum(np.random.default_rng(seed).normal(size=(6, 2, 4)), axis=0)
    known = {} if identity is None else {"identity": identity.to_dict()}
    return Calibration.from_residuals(dict.fromkeys(streams, path), provenance=known, **more)


@given(st.builds(ModelIdentity, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS))
def test_an_identity_survives_a_file(one):
    assert ModelIdentity.from_dict(one.to_dict() | {"of a later version": "x"}) == one
    assert "" not in one.to_dict().values()


@given(IDENTITIES, IDENTITIES)
def test_nearness_goes_both_ways_and_the_same_is_nearest(one, other):
    assert one.nearness(other) == other.nearness(one)
    assert one.nearness(one) >= one.nearness(other)
    assert one.nearness(other) == 0 or one.model == other.model


@pytest.mark.parametrize(
    ("change", "near"),
    [
        ({"repo": "elsewhere"}, 3),
        ({"weights": "w1"}, 2),
        ({"weights": "w1", "repo": "ORG/Flux"}, 2),
        ({"weights": "w1", "repo": "elsewhere"}, 1),
        ({"weights": "", "repo": ""}, 1),
        ({"weights": "w1", "repo": "", "config": "c1"}, 0),
        ({"model": "WanTransformer3DModel"}, 0),
    ],
    ids=str,
)
def test_how_near_another_model_is(change, near):
    assert MODEL.nearness(attrs.evolve(MODEL, **change)) == near


def test_two_experts_are_two_models():
    high, low = (attrs.evolve(MODEL, part=part, weights=part) for part in ("transformer", "transformer_2"))
    assert high.nearness(low) == 0
    assert high.name() != low.name()
    assert high.nearness(attrs.evolve(low, part="")) == 2  # where the host does not tell


@pytest.mark.parametrize("values", [None, 3, {"model": 3}, {"model": "m", "weights": None}], ids=str)
def test_what_is_no_identity_is_refused(values):
    with pytest.raises(magpolicy.ArgumentError, match="identity="):
        ModelIdentity.from_dict(values)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)  # fmt: skip


@given(st.dictionaries(st.text(min_size=1), JSON, min_size=1), st.randoms())
def test_a_configs_digest_does_not_depend_on_order(config, chance):
    pairs = list(config.items())
    chance.shuffle(pairs)
    assert config_digest(dict(pairs)) == config_digest(config)


def test_a_configs_digest_says_what_the_model_is_and_not_where_or_how_it_is_stored():
    plain = {"layers": 2, "dims": (4, 6), "eps": 1.0, "inner": {"on": True}}
    same = {"eps": 1, "inner": {"on": True, "_diffusers_version": "1"}, "dims": [4, 6], "layers": 2, "_name_or_path": "x",
            "torch_dtype": "bfloat16", "pretrained": "/home/me/model", "quantization_config": {"bits": 4}}  # fmt: skip
    assert config_digest(plain) == config_digest(same) != ""
    assert config_digest(plain) != config_digest(plain | {"layers": 3}) != config_digest(plain | {"eps": 1.5})
    assert config_digest(plain | {"on": True}) != config_digest(plain | {"on": 1})
    assert config_digest({}) == config_digest(None) == config_digest({"_name_or_path": "x"}) == ""


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("org/name", ("org/name", "")),
        ("/models/my-flux", ("my-flux", "")),
        ("/models/my-flux/transformer", ("my-flux", "transformer")),
        ("./my-flux/transformer_2/", ("my-flux", "transformer_2")),
        ("my-flux", ("my-flux", "")),
        ("C:\\models\\my-flux\\transformer", ("my-flux", "transformer")),
        ("/c/hub/models--org--my--flux/snapshots/0123abcd/transformer", ("org/my--flux", "transformer")),
        ("/c/hub/models--org--flux/snapshots/0123abcd", ("org/flux", "")),
        ("transformer", ("transformer", "")),
        ("", ("", "")),
        ("/", ("", "")),
    ],
)
def test_the_repo_and_the_part_that_a_folder_tells(source, found):
    assert repo_and_part(source, ("transformer", "transformer_2")) == found


def test_what_was_learned_is_read_back_also_by_a_process_that_sees_files_alone(home):
    file = remember(MODEL, example())
    assert file.parent == home / "learned"
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    found = learned(MODEL)
    assert found == example()
    assert ModelIdentity.from_dict(found.provenance["identity"]) == MODEL
    assert found.provenance["learned"].endswith("+00:00")
    assert learned(attrs.evolve(MODEL, repo="moved")) == found  # known weights are known anywhere
    assert learned(attrs.evolve(MODEL, weights="w1")) is None


def test_what_is_learned_later_takes_the_place_and_each_set_of_streams_has_its_own():
    first = remember(MODEL, example())
    assert remember(MODEL, example(seed=1)) == first
    both = remember(MODEL, example(streams=("cond", "uncond"), seed=2))
    assert both != first
    assert learned(MODEL, ["cond"]) == example(seed=1)
    assert learned(MODEL, ["uncond", "cond"]) == example(streams=("cond", "uncond"), seed=2)
    assert learned(MODEL, ["a"]) is None
    assert {len(kept_for(MODEL, streams)) for streams in (["cond"], None)} == {2}
    assert len(kept_for(MODEL, ["cond", "uncond"])) == 1


def test_learned_ones_are_not_listed_among_the_presets():
    before = set(magpolicy.presets())
    remember(MODEL, example())
    assert set(magpolicy.presets()) == before
    name = f"{MODEL.name(['cond'])}-learned"
    assert magpolicy.preset(name).calibration == example()  # but have a name


def test_the_nearest_is_found_first_and_of_equally_near_ones_what_the_user_kept():
    pytest.importorskip("cattrs")
    other = attrs.evolve(MODEL, weights="w1")
    elsewhere = attrs.evolve(MODEL, weights="w2", repo="me/tuned")
    magpolicy.keep(example(elsewhere, name="a config"))
    magpolicy.keep(example(other, name="a repo"))
    magpolicy.keep(example(attrs.evolve(MODEL, model="Wan"), name="another class"))
    magpolicy.keep(example(name="nobody's"))
    remember(other, example())
    assert [p.name for p in kept_for(MODEL)] == ["a repo", f"{other.name(['cond'])}-learned", "a config"]
    remember(MODEL, example())
    magpolicy.keep(example(MODEL, name="mine"))
    assert [p.name for p in kept_for(MODEL)][:3] == ["mine", f"{MODEL.name(['cond'])}-learned", "a repo"]


def test_an_old_calibration_is_found_by_what_its_provenance_says():
    made = example(name="old")
    known = {"model": MODEL.model, "repo": MODEL.repo, "versions": {"magpolicy": "0.1"}}
    magpolicy.keep(attrs.evolve(made, provenance=known))
    assert [p.name for p in kept_for(MODEL)] == ["old"]
    assert kept_for(attrs.evolve(MODEL, repo="me/tuned")) == ()


@pytest.mark.skipif(os.name == "nt", reason="root aside, folders there have no such modes")
def test_a_folder_that_cannot_be_written_is_told_once(home):
    home.write_text("in the way")
    with pytest.warns(magpolicy.LibraryWarning, match=r"not kept: .*home.*; set MAGPOLICY_HOME") as told:
        assert remember(MODEL, example()) is None
    assert str(told[0].message).count("MAGPOLICY_HOME") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert remember(MODEL, example()) is None
        assert learned(MODEL) is None
        assert kept_for(MODEL) == ()


def test_the_oldest_of_what_was_learned_goes(monkeypatch):
    monkeypatch.setattr(_learned, "MOST", 3)
    for number in range(5):
        file = remember(attrs.evolve(MODEL, weights=str(number)), example())
        os.utime(file, (number, number))
    assert [learned(attrs.evolve(MODEL, weights=str(n))) is not None for n in range(5)] == [False, False, True, True, True]


def test_a_broken_file_among_the_learned_is_left_out_with_a_warning(home):
    remember(MODEL, example())
    (home / "learned" / "Wan-broken.json").write_text("{")  # of another class: it is not even read
    (home / "learned" / f"{MODEL.model}-broken.json").write_text("{")
    with pytest.warns(magpolicy.PresetWarning, match="broken") as told:
        assert learned(MODEL) == example()
    assert [MODEL.model in str(warning.message) for warning in told] == [True]
