"""The adapter in the engine's own denoising stage, on the CPU. What stands in for what: sglang_engine/stand_ins.py."""

from __future__ import annotations

import pytest

import magpolicy

pytestmark = pytest.mark.sampled

KINDS = ("wan", "wan22", "flux", "hunyuan", "sd3")
GUIDED = pytest.mark.parametrize("guided", [False, True], ids=["one call", "two calls"])


@pytest.mark.parametrize("kind", KINDS)
@GUIDED
def test_a_policy_that_never_skips_leaves_the_output_as_it_is(engine, kind, guided):
    found = engine.ask("plain_and_asked", kind=kind, asks={"computed": 12}, guided=guided)
    assert found["same"]
    assert found["mask"] == "C" * 12
    assert found["blocks"][0] == found["blocks"][1]


@pytest.mark.parametrize("kind", KINDS)
@GUIDED
def test_what_runs_is_the_plan_and_nothing_stays(engine, kind, guided):
    found = engine.ask("plain_and_asked", kind=kind, asks={"speedup": 2.0}, guided=guided)
    assert found["mask"] == found["planned"]
    assert found["mask"].count("C") == 6
    assert found["blocks"][0] * 2 == found["blocks"][1]
    assert found["streams"] == (["cond", "uncond"] if guided else ["cond"])
    assert found["problems"] == []
    assert (found["held"], found["hooks"]) == (0, 0)
    assert 0 < found["difference"] < 0.3  # random weights: it is not the full run, nor far from it
    assert found["same_after"]


@pytest.mark.parametrize("kind", KINDS)
def test_second_order_forecasts(engine, kind):
    found = engine.ask("plain_and_asked", kind=kind, asks={"speedup": 2.0, "forecast": "second-order"}, steps=20, guided=True)
    assert found["mask"] == found["planned"]
    assert found["forecasts"] > 0


@pytest.mark.parametrize(("preset", "kind"), [("flux.1-dev", "flux"), ("wan2.1-t2v-1.3b", "wan")])
@pytest.mark.parametrize("steps", [12, 28])
def test_the_rule_decides_as_simulated(engine, preset, kind, steps):
    settings = {"preset": preset, "threshold": 0.24, "max_skips": 5, "retention": 0.1}
    found = engine.ask("by_the_rule", kind=kind, settings=settings, steps=steps)
    assert found["mask"] == found["simulated"]
    assert "." in found["mask"]


def test_the_server_is_asked_once_for_all_requests(engine):
    requests = [{"steps": steps} for steps in (12, 28, 6, 12)]
    masks = engine.ask("masks", kind="flux", server={"speedup": 2.0}, requests=requests)
    assert [(len(mask), mask.count("C")) for mask in masks] == [(12, 6), (28, 14), (6, 3), (12, 6)]
    assert masks[0] == masks[3]


def test_a_request_asks_for_its_own_speed_or_none(engine):
    asked = [{"speedup": 1.5}, None, {"speedup": "fast"}, {"computed": 5}, False, {}]
    masks = engine.ask("masks", kind="wan", server={"speedup": 2.0}, requests=[{"asks": each} for each in asked])
    assert [mask and mask.count("C") for mask in masks] == [8, 6, 4, 5, None, 6]


def test_without_settings_of_the_server_only_those_requests_skip_that_ask(engine):
    masks = engine.ask("masks", kind="wan", requests=[{}, {"asks": {"speedup": 3.0}}, {}, {"asks": {}}])
    assert [mask and mask.count("C") for mask in masks] == [None, 4, None, 6]


def test_a_schedule_comes_from_its_file_and_is_stretched_to_other_lengths(engine, tmp_path):
    file, mask = tmp_path / "best.json", [1, 1, 0, 1, 0, 0] * 2
    magpolicy.Schedule.from_mask(mask).save(file)
    asked = [{}, {"asks": {"speedup": 3.0}}, {"steps": 24}]
    masks = engine.ask("masks", kind="flux", server={"schedule": str(file)}, requests=asked)
    expected = "".join("C" if computes else "." for computes in mask)
    assert masks[0] == expected
    assert masks[1].count("C") == 4
    assert (len(masks[2]), masks[2].count("C")) == (24, 12)


def test_requests_of_different_speeds_are_never_in_one_batch(engine):
    assert engine.ask("signatures") == {"same": True, "other": False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_breaks_off_leaves_nothing_to_the_next(engine, kind):
    found = engine.ask("interrupted", kind=kind)
    assert found["error"] == "out of memory"
    assert (found["held"], found["running"], found["hooks"]) == (0, False, 0)
    assert found["same"]
    assert found["masks"][0] == found["masks"][1]


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_is_another_run(engine, kind):
    assert engine.ask("sizes", kind=kind) == {"same": [True, True, True], "problems": []}


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_part_of_a_schedule_is_where_it_is_on_it(engine, kind):
    whole = engine.ask("plain_and_asked", kind=kind, asks={"speedup": 2.0})
    found = engine.ask("part_of_a_schedule", kind=kind, begin=4)
    assert found["steps"] == list(range(4, 12))
    assert found["sigmas"] == whole["sigmas"][4:]


@pytest.mark.parametrize("kind", KINDS)
@GUIDED
def test_a_calibration_measured_in_the_engine_serves_there(engine, kind, guided):
    found = engine.ask("calibrated", kind=kind, guided=guided)
    assert found["streams"] == (["cond", "uncond"] if guided else ["cond"])
    assert found["mask"].count("C") == 6
    assert found["problems"] == []


def test_a_calibration_of_diffusers_serves_and_one_of_another_model_is_refused(engine):
    about = {"model": "WanTransformer3DModel", "pipeline": "WanPipeline", "versions": {"diffusers": "0.42.1"}}
    assert engine.ask("calibrated", kind="wan", guided=True, about=about)["mask"].count("C") == 6
    with pytest.raises(Exception, match="was measured on a QwenImageTransformer2DModel, target is a WanTransformer3DModel"):
        engine.ask("calibrated", kind="wan", guided=True, about={**about, "model": "QwenImageTransformer2DModel"})


def test_attached_by_hand_replaced_and_detached(engine):
    found = engine.ask("attached_by_hand", kind="wan")
    assert (found["mask"].count("C"), found["asked"].count("C")) == (4, 8)
    assert (found["attached"], found["left"], found["first"]) == ([True], 0, False)
    assert found["same"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "model"}, "scope and blocks: in SGLang the models say themselves what is left out; leave both out"),
        ({"learn": True}, "learn=True: nothing is learned from runs in SGLang; leave it out, and ship a calibration"),
    ],
)
def test_what_is_not_for_this_host_is_one_error(engine, settings, message):
    with pytest.raises(Exception) as raised:  # noqa: PT011  (the engine is another process)
        engine.ask("attach_fails", kind="wan", settings=settings)
    assert (raised.value.kind, raised.value.args[0]) == ("ArgumentError", message)


@pytest.mark.parametrize(
    ("asks", "message"),
    [
        (3.0, "diffusers_kwargs['magpolicy']=3.0 must be an object of settings; try {'speedup': 2.0}"),
        ({"speedupp": 2.0}, "diffusers_kwargs['magpolicy']: 'speedupp' is no setting of a request; did you mean 'speedup'?"),
        ({"speedup": 0.5}, "speedup=0.5 must be >= 1; try 2.0"),
    ],
)
def test_a_request_that_asks_for_what_cannot_be_fails_alone(engine, asks, message):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        engine.ask("masks", kind="wan", server={"speedup": 2.0}, requests=[{"asks": asks}])
    assert (raised.value.kind, raised.value.args[0]) == ("ArgumentError", message)


HOOKED = [
    "__call__", "__init__", "_predict_noise", "_run_denoising_loop", "begin_spectrum_step", "spectrum_predict_features",
    "spectrum_record_features",
]  # fmt: skip


def test_the_engine_loads_the_plugin_by_its_entry_point(engine):
    assert engine.ask("start", server={"speedup": 2.0}) == {"patched": HOOKED, "lines": []}


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ('{"speedup": 2', 'MAGPOLICY_SGLANG must be a JSON object, as {"speedup": 2.0}; '),
        ("/no/such/file.json", "MAGPOLICY_SGLANG='/no/such/file.json' must be a JSON object or the path of one; No such file"),
        ({"speedupp": 2.0}, "MAGPOLICY_SGLANG: 'speedupp' is no setting; did you mean 'speedup'?"),
        ({"speedup": 0.5}, "MAGPOLICY_SGLANG: speedup=0.5 must be >= 1; try 2.0"),
        ({"calibration": "/no/such.json", "speedup": 2.0}, "MAGPOLICY_SGLANG: "),
        ({"preset": "flux.1-dev", "threshold": -1}, "MAGPOLICY_SGLANG: threshold=-1 must be >= 0; try 0.06"),
        ({"offload": "disk"}, "MAGPOLICY_SGLANG: offload='disk'"),
    ],
)
def test_wrong_settings_of_the_server_end_its_start_before_anything_is_patched(engine, server, message):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        engine.ask("start", server=server)
    assert raised.value.kind == "SystemExit"
    assert raised.value.args[0].startswith(f"magpolicy: {message}")
    assert engine.ask("unpatched_after", server=server) == {"patched": []}


def test_the_rule_without_a_preset_of_the_model_ends_the_start_when_the_model_is_known(engine):
    with pytest.raises(Exception, match="has no preset, and the rule needs magnitude ratios") as raised:
        engine.ask("start", server={"threshold": 0.1})
    assert raised.value.kind == "ArgumentError"


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.6.0"])
def test_an_unknown_version_ends_the_start_of_a_server_with_settings(engine, version):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        engine.ask("start", server={"speedup": 2.0}, version=version)
    assert (raised.value.kind, raised.value.args[0]) == (
        "SystemExit",
        f"magpolicy: sglang {version} is not known to this version of magpolicy, which was run with >=0.5.23,<0.5.24; install "
        "one of those, or a later magpolicy. Nothing was patched",
    )
    assert engine.ask("start", server=None, version=version) == {"patched": [], "lines": []}


@pytest.mark.parametrize("version", ["0.5.23", "0.5.23.post1", "0.5.23+cu130"])
def test_versions_that_are_known(engine, version):
    assert engine.ask("start", server=None, version=version)["patched"] == HOOKED


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"enable_teacache": True}, "the request asks for another cache, enable_teacache"),
        ({"enable_spectrum": True}, "the request asks for another cache, enable_spectrum"),
    ],
)
def test_requests_that_cannot_skip_say_why_once(engine, request_, why):
    found = engine.ask("others", kind="wan", server={"speedup": 2.0}, request=request_)
    assert found == {"lines": [f"magpolicy: every step computes: {why}"], "runs": False}


@pytest.mark.parametrize(
    "stage",
    [
        "pipelines_core.stages.denoising_dmd.DmdDenoisingStage",
        "pipelines_core.stages.causal_denoising.CausalDMDDenoisingStage",
        "pipelines_core.stages.model_specific_stages.helios_denoising.HeliosChunkedDenoisingStage",
        "pipelines_core.stages.model_specific_stages.mova.MOVADenoisingStage",
    ],
)
def test_a_stage_with_a_loop_of_its_own_says_so(engine, stage):
    name = stage.rpartition(".")[2]
    assert engine.ask("own_loop", stage=stage) == {"lines": [f"magpolicy: every step computes: {name} has a loop of its own"]}


PARALLEL = pytest.mark.parametrize(
    ("parallel", "streams"),
    [
        ({"enable_cfg_parallel": True}, [["cond"], ["uncond"]]),
        ({"ulysses_degree": 2, "sp_degree": 2}, [["cond", "uncond"]] * 2),
        ({"tp_size": 2}, [["cond", "uncond"]] * 2),
    ],
    ids=["guidance", "sequence", "tensor"],
)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["wan", "flux", "hunyuan", "sd3"])
@PARALLEL
def test_workers_that_share_a_request_decide_alike(engine, kind, parallel, streams):
    alone = engine.ask("plain_and_asked", kind=kind, asks={"speedup": 2.0}, guided=True)
    found = engine.ask("together", kind=kind, parallel=parallel, asks=[{"speedup": 2.0}] * 2)
    assert [each["mask"] for each in found] == [alone["mask"]] * 2
    assert [each["streams"] for each in found] == streams
    assert [(each["held"], each["problems"]) for each in found] == [(0, [])] * 2
    assert found[0]["sum"] == found[1]["sum"]
    assert sum(each["blocks"] for each in found) == alone["blocks"][0] * (1 if len(streams[0]) == 1 else 2)
    # The engine itself makes something else of SD3's latents where two workers share them; with tensor parallelism each part of
    # the random weights is another one.
    another = "tp_size" in parallel or (kind == "sd3" and "sp_degree" in parallel)
    assert found[0]["difference"] == pytest.approx(alone["difference"], rel=3.0 if another else 1e-3)


@pytest.mark.distributed
@PARALLEL
def test_workers_that_would_decide_otherwise_are_one_error_on_each(engine, parallel, streams):
    found = engine.ask("together", kind="wan", parallel=parallel, asks=[{"speedup": 2.0}, {"speedup": 3.0}])
    assert [each["error"] for each in found] == ["RunError"] * 2
    for each in found:
        assert each["message"].startswith("ranks do not decide alike. settings: rank 0 has a plan from the general prior")


@pytest.mark.distributed
@PARALLEL
def test_a_safeguard_of_workers_that_share_a_request(engine, parallel, streams):
    found = engine.ask("together", kind="wan", parallel=parallel, asks=[{"speedup": 2.0, "safeguard": True}] * 2, steps=20)
    assert found[0]["mask"] == found[1]["mask"]
    assert "." in found[0]["mask"]
