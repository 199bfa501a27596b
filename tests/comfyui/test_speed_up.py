"""The node Speed up: any model, one setting, and what it says of itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest
from host import models, running

import magpolicy
import torch

pytestmark = pytest.mark.usefixtures("comfyui", "home")


def reported(node: Any) -> Any:
    from magpolicy_comfyui._runs import attached

    attachment = attached(node)
    assert attachment is not None
    assert attachment.run_report is not None
    return attachment.run_report


def figures(patcher: Any, **config: Any) -> Any:
    """The tiny model with the config of a published one: what a model is known by."""
    patcher.model.model_config.unet_config.update(config)
    return patcher


def test_there_is_nothing_else_to_set() -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    inputs = NODE_CLASS_MAPPINGS["MagPolicySpeedUp"].INPUT_TYPES()
    assert list(inputs["required"]) == ["model", "speedup"]
    assert list(inputs["optional"]) == ["custom_speedup", "learn"]  # a prompt that is posted may leave them out
    assert inputs["required"]["speedup"][0] == ["quality", "balanced", "fast", "custom"]
    assert NODE_DISPLAY_NAME_MAPPINGS["MagPolicySpeedUp"] == "Speed up (magpolicy)"


@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "SD15", "QwenImage", "Lumina2", "StableAudio"])
def test_any_model(name: str) -> None:
    patcher = models.make(name)
    plain = running.sample(patcher, name, steps=12, cfg=3.0)
    node = running.sped_up(patcher, learn="off")
    result = running.sample(node, name, steps=12, cfg=3.0)
    report = reported(node).report
    assert (report.computed, report.skipped) == (6, 6)
    assert "general prior" in report.source
    assert bool(torch.isfinite(result).all())
    assert torch.equal(running.sample(patcher, name, steps=12, cfg=3.0), plain)


@pytest.mark.parametrize(
    ("inputs", "computed"),
    [
        ({"speedup": "quality"}, 12),
        ({"speedup": "balanced"}, 9),
        ({"speedup": "fast"}, 6),
        ({"speedup": "custom", "custom_speedup": 4.5}, 4),
        ({"speedup": "balanced", "custom_speedup": 4.5}, 9),
    ],
    ids=str,
)
def test_the_speedup_is_that_asked_for(inputs: dict[str, Any], computed: int) -> None:
    node = running.sped_up(models.make("Flux"), learn="off", **inputs)
    running.sample(node, "Flux", steps=18)
    assert reported(node).report.computed == computed


def test_a_speedup_of_one_changes_nothing() -> None:
    patcher = models.make("Flux")
    plain = running.sample(patcher, "Flux", steps=8)
    assert torch.equal(running.sample(running.sped_up(patcher, speedup="custom", custom_speedup=1.0), "Flux", steps=8), plain)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"speedup": "quick"}, "speedup='quick' must be a number or one of"),
        ({"speedup": "custom", "custom_speedup": 0.5}, "custom_speedup=0.5 must be a number from 1 to 20"),
        ({"learn": "perhaps"}, "learn='perhaps' must be one of 'as it goes'"),
    ],
)
def test_bad_values_are_named(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(magpolicy.ArgumentError, match=said):
        running.sped_up(models.make("Flux"), **inputs)


def test_a_known_model_is_planned_by_the_norms_of_its_table() -> None:
    patcher = figures(models.make("Flux"), depth=19, depth_single_blocks=38)
    node = running.sped_up(patcher, learn="off")
    running.sample(node, "Flux", steps=12)
    run_report = reported(node)
    assert run_report.source == "flux.1-dev"
    assert "norms of preset 'flux.1-dev'" in run_report.report.source


def test_a_calibration_that_was_kept_is_found(home: Path) -> None:
    patcher = models.make("WAN21_T2V")
    with magpolicy.attach(patcher, calibrate=True) as handle:
        running.sample(patcher, "WAN21_T2V", steps=12, cfg=3.0)
        magpolicy.keep(attrs.evolve(handle.calibration, name="mine"))
    for model in (patcher, models.make("WAN21_T2V")):  # also after a restart
        node = running.sped_up(model, learn="off")
        running.sample(node, "WAN21_T2V", steps=12, cfg=3.0)
        assert "calibration 'mine'" in reported(node).report.source
    other = running.sped_up(models.make("WAN21_Vace"), learn="off")
    running.sample(other, "WAN21_Vace", steps=12, cfg=3.0)
    assert "general prior" in reported(other).report.source


def test_a_calibration_that_the_node_made_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "magpolicy", ([str(tmp_path)], {".json"}))
    patcher = models.make("WAN21_T2V")
    (node,) = NODE_CLASS_MAPPINGS["MagCacheCalibration"]().apply(model=patcher, model_type="auto", name="of this one")
    running.sample(node, "WAN21_T2V", steps=12, cfg=3.0)
    node = running.sped_up(patcher, learn="off")
    running.sample(node, "WAN21_T2V", steps=12, cfg=3.0)
    assert "calibration 'of this one'" in reported(node).report.source
    rule = {"magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1}
    (node,) = NODE_CLASS_MAPPINGS["MagCache"]().apply(model=patcher, model_type="auto", speedup=2.0, **rule)
    running.sample(node, "WAN21_T2V", steps=12, cfg=3.0)
    assert "calibration 'of this one'" in reported(node).report.source


def test_loras_do_not_make_another_model_of_it() -> None:
    from magpolicy_comfyui._identity import identity_of as identity

    patcher = models.make("Flux")
    alone = identity(patcher)
    assert alone.weights
    name = "diffusion_model.single_blocks.0.linear1.weight"
    weight = patcher.model.get_parameter(name)
    patches = {f"diffusion_model.{key}": (torch.ones_like(p),) for key, p in patcher.model.diffusion_model.named_parameters()}
    assert name in patches
    clone = patcher.clone()
    clone.add_patches(patches, strength_patch=0.5)
    before = weight.detach().clone()
    clone.patch_model(device_to="cpu")
    try:
        assert not torch.equal(patcher.model.get_parameter(name), before), "the weights are patched in place"
        assert identity(clone) == identity(patcher) == alone
    finally:
        clone.unpatch_model()
    assert identity(patcher) == alone
    assert identity(models.make("Chroma")) != alone


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_too_short_for_the_speedup_get_the_nearest_plan(steps: int) -> None:
    patcher = models.make("Flux")
    plain = running.sample(patcher, "Flux", steps=steps)
    node = running.sped_up(patcher, speedup="fast", learn="off")
    with warnings.catch_warnings():
        warnings.simplefilter("error", magpolicy.PlanWarning)  # the report says it, once
        result = running.sample(node, "Flux", steps=steps)
    run_report = reported(node)
    assert not any("every step computes" in note for note in run_report.notes)
    run = f"{steps} steps" if steps > 1 else "one step"
    assert run_report.text.count(f"speedup=3 cannot be had in a run of {run}") == 1
    assert run_report.report.computed >= min(2, steps)
    if run_report.report.skipped == 0:
        assert torch.equal(result, plain)


def test_magcache_with_a_speedup_takes_any_model_too() -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    rule = {"magcache_thresh": 0.24, "retention_ratio": 1.0, "magcache_K": 0, "start_step": 0, "end_step": -1}
    (node,) = NODE_CLASS_MAPPINGS["MagCache"]().apply(model=models.make("SD15"), model_type="auto", speedup=2.0, **rule)
    running.sample(node, "SD15", steps=12)
    report = reported(node).report
    assert report.computed == 6, "a speedup is bound by no K and no retention"


def test_steps_outside_the_window_compute_in_a_plan_too() -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    rule = {"magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 5, "end_step": -3}
    (node,) = NODE_CLASS_MAPPINGS["MagCache"]().apply(model=models.make("Flux"), model_type="flux", speedup=1.5, **rule)
    running.sample(node, "Flux", steps=18)
    mask = reported(node).report.schedule.mask
    assert mask[:5] == (True,) * 5
    assert mask[16:] == (True, True)
    assert mask.count(False) == 6


def test_the_report_says_what_one_action_betters_it() -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    patcher = models.make("Flux")
    for learn, said in (("off", "set learn to 'as it goes'"), ("as it goes", "run again")):
        node = running.sped_up(patcher, learn=learn)
        running.sample(node, "Flux", steps=12)
        run_report = reported(node)
        assert said in run_report.text
        assert said in run_report.to_dict()["advice"]
        assert "calibrate=True" not in run_report.text, "words of the library, in a node"
    rule = {"magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1}
    (node,) = NODE_CLASS_MAPPINGS["MagCache"]().apply(model=patcher, model_type="flux", **rule)
    running.sample(node, "Flux", steps=12)
    assert "the node Speed up (magpolicy)" in reported(node).text
