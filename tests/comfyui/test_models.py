"""Every model class of ComfyUI: found, skipped, and left as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from host import models, newer, running

import magpolicy
import torch

CURVE = magpolicy.Curve([1.0] * 8)
EXPECTED = magpolicy.simulate(CURVE, threshold=1.0, max_skips=2, retention=0.2)


def test_every_supported_model_has_a_tiny_one(comfyui: Path) -> None:
    import comfy.supported_models

    known = {entry.__name__ for entry in comfy.supported_models.models}
    assert known <= models.TINY.keys() | newer.NO_DENOISERS | newer.UNTRIED


# Both ways for one of each kind; the rest in the way that shows more.
ALONE = ("Flux", "WAN21_T2V", "QwenImage", "HunyuanVideo", "Lumina2", "LTXV", "SD15", "SDXL")
CASES = [*((name, 3.0) for name in models.TINY), *((name, 1.0) for name in ALONE)]


@pytest.mark.parametrize(("name", "cfg"), CASES, ids=[f"{name}-{'guided' if cfg > 1 else 'alone'}" for name, cfg in CASES])
def test_a_model_skips_as_simulated(comfyui: Path, name: str, cfg: float) -> None:
    patcher = models.make(name)
    attachment = running.check(
        patcher, CURVE, EXPECTED, lambda model: running.sample(model, name, cfg=cfg), threshold=1.0, max_skips=2
    )
    assert attachment.run_report.report.scope == ("model" if models.TINY[name].whole else "stack")
    assert not attachment.run_report.notes


def test_video_and_audio_in_one_argument_skip_together(comfyui: Path) -> None:
    nested = pytest.importorskip("comfy.nested_tensor", reason="this ComfyUI has no latents of video and audio")
    patcher, stacks = models.make("LTXAV"), []
    latent = {"samples": nested.NestedTensor((torch.zeros(1, 128, 3, 4, 4), torch.zeros(1, 8, 5, 16)))}

    def act(model: Any) -> torch.Tensor:
        made = running.sample(model, "LTXAV", cfg=3.0, latent=latent)
        stacks.append(made)
        return torch.cat([part.flatten() for part in made.unbind()])

    attachment = running.check(patcher, CURVE, EXPECTED, act, threshold=1.0, max_skips=2)
    assert attachment.run_report.report.scope == "stack"
    assert not attachment.run_report.notes
    full, cached = stacks[0].unbind(), stacks[-1].unbind()
    for part, other in zip(full, cached, strict=True):
        assert not torch.equal(part, other)  # both went by reused residuals


def test_the_page_of_classes_is_true(comfyui: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "comfyui-features.md").read_text(encoding="utf-8")
    table = page.partition("## Model classes")[2].partition("|---|---|")[2].strip().splitlines()
    rows = [set(re.findall(r"`(\w+)`", line)) for line in table if line.startswith("|")]
    assert rows == [newer.TINY.keys(), newer.UNTRIED, newer.NO_DENOISERS]
