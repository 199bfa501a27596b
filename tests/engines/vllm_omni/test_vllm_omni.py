"""The adapter in the engine's own worker and model runner, on the CPU. What stands in for what: vllm_engine/stand_ins.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.sampled

KINDS = ("flux", "wan")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guided", [False, True])
def test_a_policy_that_never_skips_leaves_the_output_as_it_is(engine, kind, guided):
    found = engine.ask("plain_and_attached", kind=kind, settings={"speedup": 1.0, "learn": False}, guided=guided)
    assert found["same"]
    assert found["mask"] == "C" * 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guided", [False, True])
def test_what_runs_is_the_plan_and_nothing_stays(engine, kind, guided):
    found = engine.ask("plain_and_attached", kind=kind, settings={"speedup": 2.0, "learn": False}, guided=guided)
    assert found["mask"] == found["planned"]
    assert found["mask"].count("C") == 6
    assert found["streams"] == (["cond", "uncond"] if guided else ["cond"])
    assert found["held"] == 0
    assert 0 < found["difference"] < 0.05
    assert found["same_after"]


def test_two_experts_that_never_skip_leave_the_output_as_it_is(engine):
    found = engine.ask("two_experts", settings={"speedup": 1.0, "learn": False}, boundary=0.5)
    assert found["same"]
    assert set(found["experts"]) == {"0", "1"}


@pytest.mark.parametrize("speedup", [2.4, 3.0, 4.0])
@pytest.mark.parametrize("boundary", [None, 0.5, 0.7, 0.9])
def test_the_second_of_two_experts_begins_with_a_step_that_computes(engine, boundary, speedup):
    found = engine.ask("two_experts", settings={"speedup": speedup, "learn": False}, boundary=boundary)
    mask, switch = found["mask"], found["experts"].index("1")
    assert 0 < switch < len(mask) == len(found["experts"]) == 12
    assert mask[switch] == "C"
    assert mask == found["planned"]  # the plan knew of it
    assert mask.count("C") == int(12 / speedup)
    assert found["held"] == 0
    assert found["problems"] == []


def test_the_blocks_are_those_of_the_engines_own_models(engine):
    stacks = [engine.ask("plain_and_attached", kind=kind, settings={"speedup": 2.0, "learn": False})["stack"] for kind in KINDS]
    assert stacks == ["2 FluxTransformerBlock, 2 FluxSingleTransformerBlock", "2 WanTransformerBlock"]


def test_each_request_has_its_number_of_steps(engine):
    asked = [{"steps": steps} for steps in (12, 28, 6, 12)]
    masks = engine.ask("masks", kind="flux", settings={"speedup": 2.0, "learn": False}, requests=asked)
    assert [(len(mask), mask.count("C")) for mask in masks] == [(12, 6), (28, 14), (6, 3), (12, 6)]
    assert masks[0] == masks[3]


def test_without_settings_runs_are_twice_as_fast(engine):
    assert engine.ask("masks", kind="flux", settings={}, requests=[{}])[0].count("C") == 6


def test_a_request_asks_for_its_own_speed(engine):
    asked = [{"magpolicy": {"speedup": 1.5}}, {}, {"magpolicy": {"speedup": "fast"}}, {"magpolicy": {"speedup": 1}}]
    masks = engine.ask("masks", kind="flux", settings={"speedup": 2.0, "learn": False}, requests=asked)
    assert [mask.count("C") for mask in masks] == [8, 6, 4, 12]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3.0, "extra_args['magpolicy']=3.0 must be an object of settings; try {'speedup': 2.0}"),
        ({"sped": 3.0}, "extra_args['magpolicy']: 'sped' is no setting of a request; did you mean 'speedup'?"),
        ({"speedup": 0.5}, "speedup=0.5 must be >= 1; try 2.0"),
        (
            {"speedup": "soon"},
            "speedup='soon' must be a number or one of 'quality' (1.5), 'balanced' (2), 'fast' (3); try 'balanced'",
        ),
    ],
)
def test_a_request_that_asks_for_what_cannot_be_fails(engine, given, message):
    with pytest.raises(Exception) as raised:  # noqa: PT011  (the engine is another process)
        engine.ask("masks", kind="flux", settings={"speedup": 2.0}, requests=[{"magpolicy": given}])
    assert (raised.value.kind, raised.value.args[0]) == ("ArgumentError", message)


@pytest.mark.parametrize("name", ["calibration", "preset", "schedule", "curve", "calibrate", "offload", "group"])
def test_a_request_names_no_file_and_measures_nothing(engine, name):
    with pytest.raises(Exception, match=f"{name!r} is no setting of a request; ") as raised:
        engine.ask("masks", kind="flux", settings={"speedup": 2.0}, requests=[{"magpolicy": {name: "/etc/passwd"}}])
    assert raised.value.kind == "ArgumentError"


def test_a_request_has_settings_of_its_own_or_none(engine):
    settings = {"preset": "flux.1-dev", "threshold": 0.24, "max_skips": 5, "retention": 0.1, "learn": False}
    asked = [{}, {"magpolicy": {"max_skips": 1}}, {"magpolicy": {"speedup": 2.0}}, {"magpolicy": {"computed": 5}}, {}]
    masks = engine.ask("masks", kind="flux", settings=settings, requests=asked)
    assert masks[0] == masks[4] == _simulated(settings, 12)
    assert masks[1] == _simulated({**settings, "max_skips": 1}, 12)
    assert [mask.count("C") for mask in masks[2:4]] == [6, 5]
    assert engine.ask("without", kind="flux", settings={"speedup": 2.0, "learn": False}) == {"same": True, "runs": 0}


def test_settings_hold_inside_their_with_block(engine):
    assert [mask.count("C") for mask in engine.ask("by_hand", kind="flux")] == [6, 4, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_the_engine_compiled_are_compiled_once(engine, kind):
    found = engine.ask("compiled", kind=kind)
    assert found["same"]
    assert found["graphs"] > 0
    assert (found["more"], found["breaks"]) == (0, 0)
    assert [(len(mask), mask.count("C")) for mask in found["masks"]] == [(12, 6), (20, 10), (12, 6)]
    assert 0 < found["difference"] < 0.05


def test_the_engine_puts_requests_of_different_speeds_into_one_batch(engine):
    assert engine.ask("keys") == {"speeds": True, "steps": False}


def test_of_different_speeds_in_a_batch_the_least_one_counts(engine):
    settings = {"speedup": 3.0, "learn": False}
    batches = [
        [{"magpolicy": {"speedup": 1.5}}, {"seed": 5}],
        [{"magpolicy": {"speedup": 3.0}}, {"seed": 5, "magpolicy": {"speedup": 2.0}}],
        [{}, {"seed": 5}],
        [{"magpolicy": {"computed": 5}}, {"seed": 5, "magpolicy": {"computed": 5}}],
        [{"magpolicy": {"computed": 5}}, {"seed": 5, "magpolicy": {"speedup": 2.0}}],  # the settings of all
    ]
    masks = [engine.ask("batch", kind="flux", settings=settings, requests=each) for each in batches]
    assert [mask.count("C") for mask in masks] == [8, 6, 4, 5, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_breaks_off_leaves_nothing_to_the_next(engine, kind):
    found = engine.ask("interrupted", kind=kind)
    assert found["error"] == "out of memory"
    assert found["held"] == 0
    assert found["same"]
    assert found["masks"][0] == found["masks"][1]


def test_a_warm_up_of_the_engine_is_no_run(engine):
    assert engine.ask("dummy_run") == {"runs": 0}


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_no_trace(engine, kind):
    assert engine.ask("detached", kind=kind) == {"same": True, "patched": True}


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibration_measured_in_the_engine_serves_there(engine, kind):
    found = engine.ask("calibrated", kind=kind)
    assert found["streams"] == ["cond", "uncond"]
    assert found["model"] == {"flux": "FluxTransformer2DModel", "wan": "WanTransformer3DModel"}[kind]
    assert found["mask"].count("C") == 6


def test_the_rule_with_published_ratios(engine):
    settings = {"preset": "flux.1-dev", "threshold": 0.24, "max_skips": 5, "retention": 0.1}
    masks = engine.ask("masks", kind="flux", settings=settings, requests=[{"steps": steps} for steps in (28, 12)])
    assert masks == [_simulated(settings, 28), _simulated(settings, 12)]


def test_its_own_mag_cache_does_what_the_page_says(engine):
    known = {"mag_threshold": 0.24, "mag_max_skip_steps": 5, "mag_retention_ratio": 0.1}
    found = {
        (configured, steps): engine.ask(
            "own_cache", kind="flux", settings=known | {"num_inference_steps": configured}, steps=steps
        )
        for configured, steps in ((28, 28), (28, 12), (28, 40), (12, 12))
    }
    assert {case: each["mask"] for case, each in found.items()} == {
        (28, 28): "CCC..C...C....C.....C.....C.",
        (28, 12): "CCC..C...C..",
        (28, 40): "CCC..C...C....C.....C.....C.CCC..C...C..",
        (12, 12): "C.C...C.....",
    }
    with pytest.raises(Exception, match="Unknown model type: 'WanTransformer3DModel'"):
        engine.ask("own_cache", kind="wan", settings=known | {"num_inference_steps": 28}, steps=28)


def test_the_preset_of_its_figures_beside_it(engine):
    settings = {"preset": "flux.1-dev-vllm-omni", "learn": False}
    masks = engine.ask("masks", kind="flux", settings=settings, requests=[{"steps": steps} for steps in (28, 12, 40)])
    assert masks == ["CCC..C...C....C.....C.....C.", "CC.C..C...C.", "CCCC...C....C....C.....C.....C.....C...C"]


def test_the_engine_starts_with_the_backend(engine):
    found = engine.ask("started", settings={"speedup": 2.0, "learn": False})
    assert found["backend"] == "MagPolicyBackend"
    assert found["error"] is None
    assert found["mask"].count("C") == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sped": 2.0}, "cache_config: sped is not known; try speedup"),
        ({"mag_threshold": 0.3}, "cache_config: mag_threshold is for another cache backend; try threshold"),
        ({"preset": "flux.1-dev", "threshold": -1}, "threshold=-1 must be >= 0; try 0.06"),
        ({"blocks": "single"}, "cache_config: blocks is not known; leave it out; try speedup, for example 2.0"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_error(engine, settings, message):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        engine.ask("refused", settings=settings)
    assert raised.value.kind == "ArgumentError"
    assert message in raised.value.args[0]


@pytest.mark.parametrize("version", ["0.29.1", "0.31.0", "1.0.0rc1"])
def test_an_unknown_version_is_one_error_for_those_who_ask_for_the_backend(engine, version):
    found = engine.ask("version", found=version)
    assert (found["own"], found["none"]) == ("MagCacheBackend", None)
    assert found["error"] == (
        f"vllm_omni={version} is not known to this magpolicy, which was run in >=0.30,<0.31; install a magpolicy for it, or "
        "start vLLM-Omni without --cache-backend magpolicy"
    )


@pytest.mark.parametrize("version", ["0.30.0", "0.30.1", "0.30.1rc1", "0.30.0+cu130"])
def test_versions_that_are_known(engine, version):
    assert "error" not in engine.ask("version", found=version)


def test_without_the_engine_registering_does_nothing():
    code = "import sys, magpolicy_vllm_omni as m; m.register(); assert not {'torch', 'vllm', 'vllm_omni'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def _simulated(settings, steps):
    import magpolicy

    settings = {"semantics": None, **settings}
    settings.pop("learn", None)
    preset = settings.pop("preset")
    return "".join("C" if computed else "." for computed in magpolicy.simulate(preset, steps=steps, **settings).mask)
