"""Speed up learns: what a sampling computes is kept, and later samplings of the model are planned from it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest
from host import models, running

import magpolicy
import torch

pytestmark = [pytest.mark.usefixtures("comfyui", "home"), pytest.mark.sampled]
KIND = "WAN21_T2V"


def sampled(node: Any, **how: Any) -> Any:
    """The report of a sampling."""
    from magpolicy_comfyui._runs import attached

    running.sample(node, KIND, **({"steps": 12, "cfg": 3.0} | how))
    attachment = attached(node)
    assert attachment is not None
    assert attachment.run_report is not None
    return attachment.run_report


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.is_file())


def test_the_second_run_is_planned_from_what_the_first_one_taught(home: Path) -> None:
    patcher = models.make(KIND)
    node = running.sped_up(patcher)
    first = sampled(node)
    assert "general prior" in first.report.source
    assert "the next run is planned from what this one teaches" in first.report.advice
    second = sampled(node)
    assert "a plan from what a run that skipped steps taught" in second.report.source
    assert second.report.computed == first.report.computed == 6
    assert "first run in full" in second.report.advice
    assert len(files(home)) == 1
    for again in (running.sped_up(patcher), running.sped_up(models.make(KIND))):  # another node, and another start of ComfyUI
        assert "a plan from what" in sampled(again).report.source
    assert "general prior" in sampled(running.sped_up(models.make("WAN21_Vace"))).report.source, "another model"


@pytest.mark.parametrize("name", ["ZImage", "Flux2", "HiDream", "SD3", "LTXV", "LTXAV", "Lumina2", "SDXL"])
def test_families_without_a_preset_are_planned_by_the_prior_and_then_from_what_they_taught(home: Path, name: str) -> None:
    from magpolicy_comfyui._runs import attached

    node, said = running.sped_up(models.make(name)), []
    for _ in range(2):
        running.sample(node, name, steps=12)
        report = attached(node).run_report.report  # type: ignore[union-attr]
        said.append(report.source)
        assert report.skipped > 0
    assert "general prior" in said[0]
    assert "a plan from what a run that skipped steps taught" in said[1]


def test_a_first_run_in_full_is_the_run_without_a_node(home: Path) -> None:
    patcher = models.make(KIND)
    plain = running.sample(patcher, KIND, steps=12, cfg=3.0)
    node = running.sped_up(patcher, learn="first run in full")
    assert torch.equal(running.sample(node, KIND, steps=12, cfg=3.0), plain)
    from magpolicy_comfyui._runs import attached

    told = attached(node).run_report  # type: ignore[union-attr]
    assert told is not None
    assert (told.report.computed, told.report.skipped) == (12, 0)
    assert "learn: this run computes every step" in told.text
    second = sampled(node)
    assert "a plan from what a run in full taught" in second.report.source
    assert second.report.computed == 6
    assert second.report.advice == ""
    assert sampled(running.sped_up(patcher)).report.computed == 6


def test_nothing_is_measured_or_written_where_it_is_off(home: Path) -> None:
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS

    patcher = models.make(KIND)
    node = running.sped_up(patcher, learn="off")
    assert sampled(node).report.source == sampled(node).report.source
    rule = {"magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1}
    for speedup in (0.0, 2.0):
        inputs = rule | {"model_type": "wan2.1_t2v_1.3B", "speedup": speedup}
        (old,) = NODE_CLASS_MAPPINGS["MagCache"]().apply(model=patcher, **inputs)
        sampled(old)
    assert files(home) == []


@pytest.mark.parametrize("learn", ["as it goes", "first run in full"])
def test_an_interrupted_run_teaches_nothing(home: Path, learn: str) -> None:
    import comfy.model_management

    patcher = models.make(KIND)
    node = running.sped_up(patcher, learn=learn)
    calls = iter(range(100))

    def interrupt(*_: Any) -> None:
        if next(calls) == 4:
            raise comfy.model_management.InterruptProcessingException

    hook = patcher.model.diffusion_model.blocks[0].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sampled(node)
    finally:
        hook.remove()
    assert files(home) == []
    after = sampled(node).report
    assert ("general prior" in after.source) if learn == "as it goes" else (after.skipped == 0)
    assert len(files(home)) == 1


def test_a_folder_that_cannot_be_written_is_told_once_and_the_run_goes_on(home: Path) -> None:
    home.write_text("not a folder")
    node = running.sped_up(models.make(KIND))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", magpolicy.LibraryWarning)
        sampled(node)
        assert "a plan from what" in sampled(node).report.source, "as long as the node is there, it knows"


def test_a_calibration_of_the_users_is_not_learned_over(home: Path) -> None:
    patcher = models.make(KIND)
    with magpolicy.attach(patcher, calibrate=True) as handle:
        running.sample(patcher, KIND, steps=12, cfg=3.0)
        magpolicy.keep(attrs.evolve(handle.calibration, name="mine"))
    (kept,) = files(home)
    for learn in ("as it goes", "first run in full"):
        told = sampled(running.sped_up(patcher, learn=learn)).report
        assert (told.computed, told.advice) == (6, "")
        assert "calibration 'mine'" in told.source
    assert files(home) == [kept]


def test_two_experts_learn_each_its_own_part(home: Path) -> None:
    parts = {
        "high": {"start_step": 0, "last_step": 6, "force_full_denoise": False},
        "low": {"start_step": 6, "last_step": 12, "disable_noise": True},
    }
    nodes = {}
    for name in parts:
        patcher = models.make(KIND)
        with torch.no_grad():
            patcher.model.diffusion_model.blocks[0].ffn[0].weight.add_(0.0 if name == "high" else 0.02)
            for parameter in patcher.model.diffusion_model.parameters():
                parameter.add_(0.0 if name == "high" else 0.01)
        nodes[name] = running.sped_up(patcher, speedup="quality")
    for _ in range(2):
        told = {name: sampled(nodes[name], **part).report for name, part in parts.items()}
    assert all("of a part of the schedule" in report.source for report in told.values())
    assert all(report.skipped > 0 for report in told.values())
    assert len(files(home)) == 2


def shown(learn: str, seen: Any, cfg: float) -> Any:
    """What the panel shows."""
    from magpolicy_comfyui.server._routes import preview

    sampler = {"steps": 12, "sampler_name": "euler", "scheduler": "simple", "cfg": cfg}
    question = {"node": "MagPolicySpeedUp", "inputs": {"learn": learn}, "sampler": sampler, "seen": seen}
    status, answer = preview(json.dumps(question).encode())
    assert status == 200, answer
    return answer


@pytest.mark.parametrize(("learn", "kind"), [("as it goes", "that skipped steps"), ("first run in full", "in full")])
def test_runs_with_and_without_guidance_learn_each_its_own(home: Path, learn: str, kind: str) -> None:
    node = running.sped_up(models.make(KIND), learn=learn)
    for _ in range(6):  # as many as are averaged, and more
        sampled(node, cfg=1.0)
    assert len(files(home)) == 1
    first = sampled(node, cfg=3.0)
    assert first.report.skipped == (6 if learn == "as it goes" else 0), "the lone stream serves until there is better"
    assert len(files(home)) == 2
    for cfg in (3.0, 1.0, 3.0):
        after = shown(learn, first.to_dict()["model"] | {"streams": ["cond"] if cfg == 1.0 else ["cond", "uncond"]}, cfg)
        told = sampled(node, cfg=cfg)
        assert told.report.computed == 6
        assert kind in told.report.source
        assert after["schedule"]["mask"] == list(told.schedule.mask)
        assert after["decides"] == told.report.source


def test_a_lora_does_not_start_it_all_over(home: Path) -> None:
    patcher = models.make(KIND)
    sampled(running.sped_up(patcher))
    for strength in (0.3, 0.6):
        clone = patcher.clone()
        patches = {
            f"diffusion_model.{key}": (torch.ones_like(p),) for key, p in patcher.model.diffusion_model.named_parameters()
        }
        clone.add_patches(patches, strength_patch=strength * 1e-3)
        assert "a plan from what" in sampled(running.sped_up(clone)).report.source
    assert len(files(home)) == 1


def test_the_panel_shows_the_plan_of_the_next_run(home: Path) -> None:
    node = running.sped_up(models.make(KIND), learn="first run in full")
    before = shown("first run in full", None, 3.0)
    assert before["headline"].startswith("12 of 12 computed")
    assert "this run computes every step" in before["decides"]
    seen = sampled(node).to_dict()["model"]
    for learn in ("first run in full", "as it goes"):
        after = shown(learn, seen, 3.0)
        told = sampled(node)
        assert after["schedule"]["mask"] == list(told.schedule.mask)
        assert after["decides"] == told.report.source


def test_a_handle_learns_too(home: Path) -> None:
    patcher = models.make(KIND)
    with magpolicy.attach(patcher, speedup=2.0) as handle:
        for said in ("general prior", "a plan from what a run that skipped steps taught"):
            running.sample(patcher, KIND, steps=12, cfg=3.0)
            assert said in handle.report.source
    with magpolicy.attach(patcher, speedup=2.0, learn=False) as handle:
        running.sample(patcher, KIND, steps=12, cfg=3.0)
        assert "a plan from what" in handle.report.source, "what is known is used"
    assert len(files(home)) == 1


def test_a_fault_of_ours_costs_speed_and_no_picture(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from magpolicy_comfyui import _runs
    from magpolicy_torch.adapter import Learner

    def fault(*_: Any, **__: Any) -> None:
        raise ValueError("shapes (6,12) (6,6)")

    patcher = models.make(KIND)
    plain = running.sample(patcher, KIND, steps=12, cfg=3.0)
    node = running.sped_up(patcher)
    with monkeypatch.context() as broken:
        broken.setattr(Learner, "learn", fault)
        assert "nothing was learned: ValueError" in sampled(node).text
        broken.setattr(_runs, "place", fault)
        assert torch.equal(running.sample(node, KIND, steps=12, cfg=3.0), plain)
    assert "every step computes: ValueError: shapes (6,12) (6,6)" in caplog.text
    assert sampled(node).report.skipped == 6
