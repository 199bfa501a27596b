"""Every model class of ComfyUI: found, skipped, and left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import models, running

import magpolicy

CURVE = magpolicy.Curve([1.0] * 8)
EXPECTED = magpolicy.simulate(CURVE, threshold=1.0, max_skips=2, retention=0.2)


def test_every_supported_model_has_a_tiny_one(comfyui: Path) -> None:
    import comfy.supported_models

    known = {entry.__name__ for entry in comfy.supported_models.models}
    assert known <= models.TINY.keys()


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
