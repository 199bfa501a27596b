"""What the panel shows before a run, against what ComfyUI then does: its own samplers, its own noise levels, a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from host import models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torch

# torchsde, of some samplers, warns about rounding.
pytestmark = [pytest.mark.usefixtures("comfyui"), pytest.mark.filterwarnings("default")]
INPUTS: dict[str, Any] = {
    "model_type": "flux", "magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1,
}  # fmt: skip


def previewed(sampler: dict[str, Any], **inputs: Any) -> Any:
    import magpolicy
    from magpolicy_comfyui.nodes import _inputs
    from magpolicy_comfyui.server import _preview

    chosen = INPUTS | inputs
    preset = magpolicy.preset(chosen["model_type"])
    asked = _preview.Sampler.of(sampler, preset.steps)
    found = _preview.preview(_inputs.settings_of(**chosen), preset, asked, flux=preset.family == "flux")
    return found.schedule, found.remark


def sampled(kind: str, sampler: dict[str, Any], cfg: float = 1.0, **inputs: Any) -> Any:
    """The schedule that ran."""
    import nodes

    from magpolicy_comfyui._runs import attached
    from magpolicy_comfyui.nodes import _nodes

    (model,) = _nodes.MagCache().apply(models.make(kind), **INPUTS | inputs)
    values = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0} | sampler
    positive, negative = models.conditioning(kind, 1), models.conditioning(kind, 2)
    nodes.common_ksampler(
        model, 3, values["steps"], cfg, values["sampler_name"], values["scheduler"], positive, negative, models.latent(kind),
        denoise=values["denoise"], start_step=values.get("start_at_step"), last_step=values.get("end_at_step"),
    )  # fmt: skip
    found = attached(model)
    assert found is not None
    assert found.run_report is not None
    return found.run_report.schedule


SAMPLERS = [
    "euler",
    "heun",
    "dpm_2",
    "dpmpp_2m",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "res_multistep",
    "uni_pc",
    "lcm",
    "seeds_2",
    "ddim",
]


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_what_was_previewed(name: str) -> None:
    sampler = {"steps": 9, "sampler_name": name, "scheduler": "simple"}
    schedule, remark = previewed(sampler, magcache_thresh=0.1)
    assert remark is None
    assert schedule.masks == sampled("Flux", sampler, magcache_thresh=0.1).masks
    assert schedule.skipped > 0


@pytest.mark.parametrize(
    "name", ["simple", "normal", "beta", "sgm_uniform", "karras", "exponential", "ddim_uniform", "kl_optimal"]
)
def test_every_scheduler_runs_what_was_previewed(name: str) -> None:
    sampler = {"steps": 14, "sampler_name": "euler", "scheduler": name}
    assert previewed(sampler)[0].masks == sampled("Flux", sampler).masks


@pytest.mark.parametrize(
    "part",
    [{"denoise": 0.5}, {"denoise": 0.31}, {"start_at_step": 6}, {"end_at_step": 9}, {"start_at_step": 4, "end_at_step": 12}],
)
def test_a_part_of_a_schedule_runs_what_was_previewed(part: dict[str, Any]) -> None:
    sampler = {"steps": 14, "sampler_name": "euler", "scheduler": "simple", **part}
    assert previewed(sampler)[0].masks == sampled("Flux", sampler).masks


def test_an_unknown_scheduler_is_taken_for_even_steps() -> None:
    schedule, remark = previewed({"steps": 14, "sampler_name": "euler", "scheduler": "of another pack"})
    assert remark is not None
    assert schedule.masks == previewed({"steps": 14, "sampler_name": "euler", "scheduler": "simple"})[0].masks


def test_previewing_leaves_the_common_generator_alone() -> None:
    import comfy.samplers

    from magpolicy_comfyui.server import _preview

    torch.manual_seed(7)
    before = torch.get_rng_state()
    for name in comfy.samplers.SAMPLER_NAMES:
        _, remark = previewed({"steps": 6, "sampler_name": name, "scheduler": "simple"})
        assert torch.equal(torch.get_rng_state(), before), name
        assert (remark is not None) == (name in (*_preview._DRAWING, "dpm_adaptive")), name


def test_nothing_left_to_sample_is_told(comfyui: Path) -> None:
    from magpolicy import ArgumentError

    with pytest.raises(ArgumentError, match="start_at_step=20: nothing"):
        previewed({"steps": 14, "sampler_name": "euler", "scheduler": "simple", "start_at_step": 20})


SPEEDS = [{"speedup": "balanced"}, {"speedup": "custom", "custom_speedup": 3.5}]


def answered(sampler: dict[str, Any], inputs: dict[str, Any], seen: Any = None) -> Any:
    """What the panel of the node Speed up shows."""
    from magpolicy_comfyui.server._routes import preview

    question = {"node": "MagPolicySpeedUp", "inputs": inputs, "sampler": sampler, "seen": seen}
    status, answer = preview(json.dumps(question).encode())
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("inputs", SPEEDS, ids=str)
@pytest.mark.parametrize(
    ("name", "config"), [("WAN21_T2V", {}), ("Flux", {}), ("Flux", {"depth": 19, "depth_single_blocks": 38})]
)
def test_a_plan_is_previewed_as_it_runs_once_the_model_was_sampled(
    name: str, config: dict[str, Any], inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nodes

    from magpolicy_comfyui._runs import attached
    from magpolicy_comfyui.nodes import _nodes

    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path))
    sampler = {"steps": 14, "sampler_name": "euler", "scheduler": "simple"}
    before = answered(sampler, inputs)
    assert before["decides"] == "a plan from the general prior, norms taken for constant"
    assert any("when it is sampled" in note for note in before["notes"])
    patcher = models.make(name)
    patcher.model.model_config.unet_config.update(config)
    positive, negative = models.conditioning(name, 1), models.conditioning(name, 2)
    (model,) = _nodes.MagPolicySpeedUp().apply(patcher, learn="off", **inputs)
    nodes.common_ksampler(model, 3, 14, 1.0, "euler", "simple", positive, negative, models.latent(name))
    told = attached(model).run_report.to_dict()  # type: ignore[union-attr]
    after = answered(sampler, {"learn": "off"} | inputs, json.loads(json.dumps(told["model"])))
    assert after["schedule"]["mask"] == told["schedule"]["mask"]
    assert after["decides"] == told["decided"]
    assert after["advice"] == told["advice"]
    assert ("flux.1-dev" in after["decides"]) == bool(config)


def test_what_was_seen_of_a_model_may_be_anything(comfyui: Path) -> None:
    sampler = {"steps": 14, "sampler_name": "euler", "scheduler": "simple"}
    plain = answered(sampler, {})
    for seen in ([], {}, 3, {"preset": "/etc/passwd.json", "identity": [], "shift": "x", "streams": None}):
        assert answered(sampler, {}, seen)["schedule"]["mask"] == plain["schedule"]["mask"]


def test_auto_is_previewed_once_the_model_was_sampled(comfyui: Path) -> None:
    import magpolicy
    from magpolicy_comfyui.server._routes import preview

    inputs = INPUTS | {"model_type": "auto", "magcache_thresh": -1, "retention_ratio": -1, "magcache_K": -1}
    question = {"node": "MagCache", "inputs": inputs, "sampler": {"steps": 20}}
    assert preview(json.dumps(question).encode())[1]["schedule"] is None
    question["seen"] = {"preset": "wan2.1-vace-1.3b"}
    status, answer = preview(json.dumps(question).encode())
    assert (status, answer["schedule"]["mask"]) == (200, list(magpolicy.simulate("wan2.1-vace-1.3b", steps=20).mask))
    question["seen"] = {"preset": None}
    status, answer = preview(json.dumps(question).encode())
    assert (status, sum(answer["schedule"]["mask"])) == (200, 10)
    assert any("no preset was calibrated on this model" in note for note in answer["notes"])


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.integers(), st.floats(), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2), st.sampled_from([10**400, -(10**400), 1e308, 2**63]),
)  # fmt: skip
NAMES = ("model_type", "magcache_thresh", "retention_ratio", "magcache_K", "start_step", "end_step", "settings", "semantics",
         "offload", "speedup", "forecast", "custom_speedup", "learn")  # fmt: skip
SAMPLING = ("steps", "sampler_name", "scheduler", "denoise", "cfg", "shift", "start_at_step", "end_at_step", "custom")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    node=st.sampled_from(["MagCache", "MagPolicySpeedUp", "else"]),
    inputs=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=2),
    sampler=st.dictionaries(st.sampled_from(SAMPLING), ANYTHING, max_size=2),
    seen=ANYTHING,
)
def test_whatever_a_panel_is_asked_it_answers_or_names_the_value(
    comfyui: Path, node: str, inputs: dict[str, Any], sampler: dict[str, Any], seen: Any
) -> None:
    from magpolicy_comfyui.server._routes import preview

    known = {"model_type": "flux", "sampler_name": "euler", "scheduler": "simple", "steps": 20}
    question = {"node": node, "inputs": {"model_type": "flux"} | inputs, "sampler": known | sampler, "seen": seen}
    status, answer = preview(json.dumps(question).encode())
    assert status in (200, 400), answer
    if status == 400:
        assert (
            any(f"{name}=" in answer["error"] for name in (*NAMES, *SAMPLING)) or "nothing of the schedule" in answer["error"]
        )


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("inputs", {"start_step": "x"}, r"start_step='x' must be a whole number; try 0"),
        ("inputs", {"start_step": -1}, r"start_step=-1 must be a whole number from 0 to 10000; try 0"),
        ("inputs", {"magcache_K": 2.5}, r"magcache_K=2.5 must be a whole number from -1 to 100; try -1"),
        ("inputs", {"settings": "mine"}, r"settings='mine' must be one of 'as set here', \"the preset's\"; try 'as set here'"),
        ("inputs", {"model_type": ["flux"]}, r"model_type=\['flux'\] must be text; try 'auto'"),
        ("sampler", {"denoise": float("nan")}, r"denoise=nan must be a number from 0 to 1; try 1.0"),
        ("sampler", {"denoise": -1}, r"denoise=-1 must be a number from 0 to 1"),
        ("sampler", {"shift": 1e308}, r"shift=1e\+308 must be a number from 0 to 100"),
        ("sampler", {"steps": 10**400}, r"steps=a number of many digits must be a whole number from 1 to 2000"),
    ],
)
def test_a_value_of_another_kind_or_out_of_range_is_named(
    comfyui: Path, part: str, values: dict[str, Any], message: str
) -> None:
    from magpolicy_comfyui.server._routes import preview

    question = {"node": "MagCache", "inputs": {"model_type": "flux"}, "sampler": {"steps": 20}}
    question[part] = question[part] | values
    status, answer = preview(json.dumps(question).encode())
    assert status == 400
    assert re.search(message, answer["error"]), answer
