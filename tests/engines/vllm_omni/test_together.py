"""Two workers of the engine that share each request: one decision for both."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.distributed
SPEED = {"speedup": 2.0, "learn": False}
BRANCH = {"cfg_parallel_size": 2}
SHARED = [BRANCH, {"ulysses_degree": 2}, {"tensor_parallel_size": 2}, {"use_hsdp": True, "hsdp_shard_size": 2}]
PARALLEL = pytest.mark.parametrize("parallel", SHARED, ids=["guidance", "sequence", "tensors", "weights"])


@pytest.fixture(scope="module")
def alone(together):
    """What one worker does."""
    return {kind: together.ask("alone", kind=kind, settings=SPEED) for kind in ("flux", "wan")}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["flux", "wan"])
@PARALLEL
def test_they_decide_as_one_worker(together, alone, kind, parallel):
    one, found = alone[kind], together.ask("two", kind=kind, parallel=parallel, settings=[SPEED] * 2)
    streams = [["cond"], ["uncond"]] if parallel is BRANCH else [["cond", "uncond"]] * 2
    assert [each["mask"] for each in found] == [one["mask"]] * 2
    assert [each["streams"] for each in found] == streams
    for each in found:
        assert (each["problems"], each["held"], each["again"], each["after"]) == ([], 0, True, True)
        assert each["sum"] == pytest.approx(one["sum"], rel=1e-5)
        assert each["difference"] == pytest.approx(one["difference"], rel=1e-3)
    assert found[0]["collectives"] == found[1]["collectives"]
    if parallel in SHARED[1:3]:  # half of the steps are skipped; a few messages of ours, and what runs outside of the blocks
        whole, skipping = found[0]["collectives"]
        assert skipping < 0.6 * whole


@pytest.mark.parametrize("parallel", SHARED[:2], ids=["guidance", "sequence"])
def test_settings_that_differ_are_one_error_on_each(together, parallel):
    found = together.ask("two", kind="wan", parallel=parallel, settings=[SPEED, {**SPEED, "speedup": 3.0}])
    assert [each["error"] for each in found] == ["RunError"] * 2
    for each in found:
        assert each["message"].startswith("ranks do not decide alike. settings: rank 0 has a plan from the general prior")


@pytest.mark.parametrize("parallel", SHARED[:2], ids=["guidance", "sequence"])
def test_a_safeguard_measures_with_both(together, parallel):
    found = together.ask("two", kind="wan", parallel=parallel, settings=[{**SPEED, "safeguard": True}] * 2, steps=20)
    assert found[0]["mask"] == found[1]["mask"]
    assert "." in found[0]["mask"]


@pytest.mark.parametrize("parallel", SHARED[1:3], ids=["sequence", "tensors"])
def test_a_calibration_is_that_of_one_worker(together, parallel):
    one = together.ask("alone", kind="wan", settings={"calibrate": True})
    found = together.ask("two", kind="wan", parallel=parallel, settings=[{"calibrate": True}] * 2)
    assert found[0]["calibration"] == found[1]["calibration"]
    for name, gram in one["calibration"].items():
        np.testing.assert_allclose(
            np.array(found[0]["calibration"][name], float), np.array(gram, float), rtol=1e-4, equal_nan=True
        )


def test_both_learn_the_same(together):
    found = together.ask("two", kind="wan", parallel={"ulysses_degree": 2}, settings=[{"speedup": 2.0}] * 2)
    assert found[0]["sum"] == found[1]["sum"]
    assert [each["again"] for each in found] == [False] * 2  # the second run is planned from what the first one taught


@pytest.mark.parametrize(
    ("parallel", "settings", "message"),
    [
        (BRANCH, {"calibrate": True}, "calibrate and learn: each rank has one branch of guidance, and what is measured"),
        (
            {"pipeline_parallel_size": 2},
            SPEED,
            "each rank has some of the blocks (pipeline parallelism), which this adapter",
        ),
        (
            {"data_parallel_size": 2},
            SPEED,
            "each copy of the model has its own requests (data parallelism), which this",
        ),
    ],
)
def test_what_several_cannot_do_ends_the_start(together, parallel, settings, message):
    found = together.ask("two", kind="wan", parallel=parallel, settings=[settings] * 2)
    assert all(each["message"].startswith(message) for each in found)
