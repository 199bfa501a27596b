"""Files that strangers made: whatever one holds, it loads or ends in the project's own error, and soon.

Real files are mutated: values, keys and bytes. ``tests/data/strange`` keeps the files that once broke something.
``MAGPOLICY_FUZZ=5000`` tries so many in place of 150.
"""

import contextlib
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strange import CAMPAIGN, mutated_bytes, mutated_values

import magpolicy
from magpolicy import Calibration, MagPolicyError, Schedule, load_calibration, load_preset, load_schedule
from magpolicy.adapter import entries

pytest.importorskip("cattrs", reason="the files extra is not installed")
KEPT = sorted((Path(__file__).parents[1] / "data" / "strange").iterdir())
READERS = {"preset": load_preset, "calibration": load_calibration, "schedule": load_schedule}


def residuals(steps=6):
    return np.cumsum(np.random.default_rng(0).normal(size=(steps, 2, 4)), axis=0)


CALIBRATION = Calibration.from_residuals({"cond": residuals(), "uncond": residuals() ** 2}, window=3, name="mine")
PLANNED = magpolicy.plan(CALIBRATION, speedup=2.0, forecast="second-order")


FILES = ["preset.json", "preset.toml", "calibration.json", "calibration.safetensors", "schedule.json"]


class Real(dict):
    """The content of real files, by name."""

    def __repr__(self):
        return "Real()"  # what a failing case prints is long enough


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    magpolicy.save_preset(magpolicy.preset("wan2.1-t2v-1.3b"), folder / "preset.json")
    CALIBRATION.save(folder / "calibration.json")
    CALIBRATION.save(folder / "calibration.safetensors")
    PLANNED.save(folder / "schedule.json")
    (folder / "preset.toml").write_text('name = "t"\nratios = [1.0, 0.9, 1.1]\nthreshold = 0.1\n[[notes]]\nx = {a.b = 1}\n')
    return Real({file.name: file.read_bytes() for file in folder.iterdir()})


def tried(file):
    """Read a file as everything that it could be, and use what it gives."""
    for reads in READERS.values():
        with contextlib.suppress(MagPolicyError):
            used(reads(file))
    with contextlib.suppress(MagPolicyError):
        magpolicy.simulate(file, steps=8, threshold=0.1, max_skips=2, retention=0.2)


def used(found):
    if isinstance(found, Schedule):
        assert Schedule.from_dict(found.to_dict()) == found
        assert all(math.isfinite(value) for row in found.coefficients for step in row for value in step)
        str(found), found.speedup, found.reasons(), found.bins
        return
    curve = found.curve
    assert all(math.isfinite(value) and value > 0 for row in curve.ratios.values() for value in row)
    schedule = magpolicy.plan(found, steps=6, speedup=1.5)
    assert schedule.mask[0]
    assert math.isfinite(schedule.worst)


@CAMPAIGN
@given(data=st.data(), name=st.sampled_from([name for name in FILES if name.endswith("json")]))
def test_values_that_are_changed(data, name, real, tmp_path):
    file = tmp_path / name
    file.write_bytes(data.draw(mutated_values(real[name])))
    tried(file)


@CAMPAIGN
@given(data=st.data(), name=st.sampled_from(FILES))
def test_bytes_that_are_changed(data, name, real, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="the files extra is not installed")
    file = tmp_path / name
    file.write_bytes(data.draw(mutated_bytes(real[name])))
    tried(file)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_what_once_broke_something(file, tmp_path, monkeypatch):
    tried(file)
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    (tmp_path / file.name).write_bytes(file.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", magpolicy.PresetWarning)
        assert magpolicy.preset("flux").name
        assert len(list(magpolicy.presets())) > 90
    assert [one.file.name for one in entries()] in ([file.name], [])
