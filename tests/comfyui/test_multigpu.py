"""Conditions that ComfyUI splits over devices, by its own scheduler and threads. The second device here is the CPU again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host import models, running

import magpolicy
import torch

CURVE = magpolicy.Curve([1.0] * 8)
SETTINGS = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
EXPECTED = magpolicy.simulate(CURVE, **SETTINGS)


def split(name: str) -> Any:
    """A model with a clone of it on a second device, as the node of ComfyUI leaves it."""
    pytest.importorskip("comfy.multigpu", reason="this ComfyUI splits nothing over devices")
    patcher, other = models.make(name), models.make(name)
    other.load_device, other.is_multigpu_base_clone = torch.device("cpu", 1), True
    patcher.set_additional_models("multigpu", [other])
    return patcher


@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "LTXV", "SDXL"])
def test_each_device_decides_alike(comfyui: Path, name: str) -> None:
    patcher = split(name)
    bare = running.sample(patcher, name, cfg=3.0)
    idle, never = running.under(patcher, CURVE, **(SETTINGS | {"threshold": 0.0, "max_skips": 0, "retention": 1.0}))
    assert torch.equal(running.sample(idle, name, cfg=3.0), bare)
    assert never.run_report.report.skipped == 0
    node, attachment = running.under(patcher, CURVE, **SETTINGS)
    found = [running.sample(node, name, cfg=3.0) for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], bare)
    report = attachment.run_report.report
    assert set(report.schedule.streams) == {"cond", "uncond"}
    running.same(report.schedule, EXPECTED)
    assert report.computed == EXPECTED.computed
    assert attachment.run_report.residuals_held == 0
    assert [note for note in attachment.run_report.notes if "2 devices shared the conditions" in note]


def test_they_skip_as_one_device_does_that_evaluates_one_after_the_other(comfyui: Path, monkeypatch: Any) -> None:
    import comfy.model_management

    alone, two = models.make("Flux"), split("Flux")
    made = []
    for patcher in (alone, two):
        monkeypatch.setattr(patcher.model, "memory_required", lambda *_, **__: float("inf"))
        made.append(running.sample(running.under(patcher, CURVE, **SETTINGS)[0], "Flux", cfg=3.0))
    assert comfy.model_management.get_torch_device().type == "cpu"
    assert torch.equal(*made)


def test_what_needs_both_conditions_says_so(comfyui: Path, home: Path) -> None:
    patcher = split("Flux")
    node, attachment = running.under(patcher, None, calibrate=True)
    running.sample(node, "Flux", cfg=3.0)
    assert attachment.run_report.measured is None
    assert "on one device" in attachment.run_report.problem
    sped_up = running.sped_up(patcher)
    running.sample(sped_up, "Flux", cfg=3.0)
    assert not list(home.glob("**/*.json"))


def test_a_fault_on_one_device_leaves_the_next_sampling_as_it_was(comfyui: Path, monkeypatch: Any) -> None:
    patcher = split("Flux")
    other = patcher.get_additional_models_with_key("multigpu")[0].model.diffusion_model
    node, attachment = running.under(patcher, CURVE, **SETTINGS)
    before = running.sample(node, "Flux", cfg=3.0)
    calls = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("boom")
        return type(other).forward(other, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(other, "forward", failing)
        with pytest.raises(RuntimeError, match="boom"):
            running.sample(node, "Flux", cfg=3.0)
    assert torch.equal(running.sample(node, "Flux", cfg=3.0), before)
    running.same(attachment.run_report.report.schedule, EXPECTED)
