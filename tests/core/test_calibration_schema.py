"""The published schema of a calibration's file says what the reader takes: the same keys, the same files."""

import copy
import json
from importlib.resources import files

import numpy as np
import pytest

import magpolicy
from magpolicy.calibration import _file, _format
from magpolicy.catalog import _contributed

SCHEMA = json.loads((files("magpolicy") / "data" / "calibration.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def content(tmp_path):
    """What is in a calibration's file: two streams, two samples, and a contribution."""
    path = np.cumsum(np.random.default_rng(0).normal(size=(6, 2, 4)), axis=0)
    about = {"identity": {"model": "M", "repo": "org/m"}, "versions": {"torch": "2"}}
    one = magpolicy.Calibration.from_residuals({"cond": path, "uncond": path**2}, name="x", provenance=about)
    two = magpolicy.Calibration.from_residuals({"cond": path + 0.1, "uncond": path}, name="x", provenance=about)
    _contributed.contributed(magpolicy.Calibration.merge([one, two]), "me", "MIT", "a note").save(tmp_path / "c.json")
    return json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))


def test_the_keys_are_those_that_the_reader_knows():
    stream = SCHEMA["properties"]["streams"]["additionalProperties"]
    said = SCHEMA["properties"]["provenance"]["properties"]["contribution"]["properties"]
    assert set(SCHEMA["properties"]) == set(_file._KEYS)
    assert set(stream["properties"]) == _file._STREAM_KEYS
    assert set(said) == _contributed._OF_A_CONTRIBUTION
    assert tuple(said["licence"]["enum"]) == _contributed.LICENCES
    assert SCHEMA["properties"]["version"]["const"] == _format.VERSION
    assert SCHEMA["properties"]["kind"]["const"] == _format.KIND


def test_a_file_that_was_written_fits_and_what_the_reader_refuses_does_not(content, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="the dev extra is not installed")
    checker = jsonschema.Draft202012Validator(SCHEMA)
    checker.check_schema(SCHEMA)
    assert [error.message for error in checker.iter_errors(content)] == []
    assert "samples" in content["streams"]["cond"]
    for change in (
        lambda c: c.pop("kind"),
        lambda c: c.update(version=2),
        lambda c: c.update(more=1),
        lambda c: c.pop("streams"),
        lambda c: c["streams"]["cond"].pop("gram"),
        lambda c: c["streams"]["cond"].update(more=1),
        lambda c: c.update(sigmas="0.5"),
        lambda c: c.update(prior_share=2),
        lambda c: c["cross"][0].pop("products"),
    ):
        other = copy.deepcopy(content)
        change(other)
        assert not checker.is_valid(other), change
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(magpolicy.PresetError):
            magpolicy.load_calibration(tmp_path / "other.json")
