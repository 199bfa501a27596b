"""Every model class of ComfyUI: found, skipped, and left as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from host import models, newer, running

import magpolicy
import torch

pytestmark = pytest.mark.sampled

CURVE = magpolicy.Curve([1.0] * 8)
EXPECTED = magpolicy.simulate(CURVE, threshold=1.0, max_skips=2, retention=0.2)


def test_every_supported_model_has_a_tiny_one(comfyui: Path) -> None:
    import comfy.supported_models

    known = {entry.__name__ for entry in comfy.supported_models.models}
    assert known <= models.TINY.keys() | newer.NO_DENOISERS


# Both ways for one of each kind; the rest in the way that shows more.
ALONE = ("Flux", "WAN21_T2V", "QwenImage", "HunyuanVideo", "Lumina2", "LTXV", "SD15", "SDXL")
CASES = [*((name, 3.0) for name in models.TINY), *((name, 1.0) for name in ALONE)]


@pytest.mark.parametrize(("name", "cfg"), CASES, ids=[f"{name}-{'guided' if cfg > 1 else 'alone'}" for name, cfg in CASES])
def test_a_model_skips_as_simulated(comfyui: Path, name: str, cfg: float) -> None:
    patcher = models.make(name)
    attachment = running.check(
        patcher, CURVE, EXPECTED, lambda model: running.flat(running.sample(model, name, cfg=cfg)), threshold=1.0, max_skips=2
    )
    assert attachment.run_report.report.scope == ("model" if models.TINY[name].whole else "stack")
    assert not attachment.run_report.notes


@pytest.mark.parametrize("name", models.TINY)
def test_a_skip_right_after_gives_what_was_computed(comfyui: Path, name: str) -> None:
    patcher = models.make(name)
    table = patcher.get_model_object("model_sampling").sigmas
    # A step between equal noise levels leaves the sample as it is.
    sigmas = [float(table[int(share * (len(table) - 1))]) for share in (0.7, 0.7, 0.3, 0.3)]
    node, attachment = running.under(patcher, CURVE, threshold=1.0, max_skips=1, retention=0.0)
    spy = running.Spy.on(node)
    running.custom(node, name, [*sigmas, 0.0], cfg=3.0 if name == "Hunyuan3Dv2_1" else 1.0)  # that one takes two conditions
    assert spy.computed == [True, False, True, False]
    for skipped in (1, 3):
        torch.testing.assert_close(spy.calls[skipped][3], spy.calls[skipped - 1][3], rtol=1e-5, atol=1e-5)
    assert not attachment.run_report.notes


@pytest.mark.parametrize("name", newer.TINY)
def test_a_model_can_be_calibrated(comfyui: Path, name: str) -> None:
    with magpolicy.attach(models.make(name), calibrate=True) as handle:
        running.sample(handle.target, name, cfg=3.0, steps=4)
    curve = handle.calibration.curve
    assert set(curve.streams) == {"cond", "uncond"}
    assert all(0 < ratio < 10 for ratios in curve.ratios.values() for ratio in ratios)


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


REFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "JoyImage": ({"reference_latents": [_noise(1, 16, 1, 8, 8)]}, {}),
    "MageFlow": ({"reference_latents": [_noise(1, 128, 4, 4)]}, {}),
    "Boogu": ({"reference_latents": [_noise(1, 16, 8, 8)]}, {}),
    "TripoSplat": ({"reference_latents": [_noise(1, 128, 2, 2)]}, {"cond2_channels": 128}),
    "HiDreamO1": ({"reference_latents": [_noise(1, 64, 64, 3).sigmoid()]}, {}),
    "MiniMaxH3": ({"minimax_keyframes": [{"latent": _noise(1, 24, 1, 4, 4), "resolved_frame_index": 0}]}, {}),
    "ACEStep15": ({"reference_audio_timbre_latents": [_noise(1, 64, 20)]}, {}),
    "Ideogram4": ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0]])}, {}),
    "Anima": ({"t5xxl_ids": torch.arange(1, 8), "t5xxl_weights": torch.ones(7)}, {}),
}
"""What prompts of newer classes may hold beside text, and figures that it needs."""


@pytest.mark.parametrize("name", REFERENCES)
def test_more_in_a_prompt_than_text(comfyui: Path, name: str) -> None:
    more, figures = REFERENCES[name]
    patcher = models.make(name, **figures)
    pairs = [models.conditioning(name, seed, **more) for seed in (0, 1)]

    def act(model: Any) -> torch.Tensor:
        return running.flat(running.sample(model, name, cfg=3.0, positive=pairs[0], negative=pairs[1]))

    attachment = running.check(patcher, CURVE, EXPECTED, act, threshold=1.0, max_skips=2)
    assert not attachment.run_report.notes


def test_a_model_that_goes_over_its_latent_in_windows_is_skipped_as_a_whole(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit = pytest.importorskip("comfy.ldm.minimax_music.dit", reason="this ComfyUI has no MiniMax Music")
    monkeypatch.setattr(dit, "MAX_CONDITION_FRAMES", 4)
    monkeypatch.setattr(dit, "CONDITION_HOP_FRAMES", 2)
    patcher, windows = models.make("MiniMaxMusic3"), []
    model = patcher.model.diffusion_model.diffusion_transformer
    model.register_forward_pre_hook(lambda *_: windows.append(1))
    act = lambda model: running.sample(model, "MiniMaxMusic3", cfg=3.0)  # noqa: E731
    running.check(patcher, CURVE, EXPECTED, act, threshold=1.0, max_skips=2)
    assert len(windows) >= 3 * 8


def test_a_model_of_several_stages_skips_in_each(comfyui: Path) -> None:
    patcher = models.make("Trellis2", num_blocks=1)
    voxels = models.TINY["Trellis2"].fixed
    pairs = [models.conditioning("Trellis2", seed) for seed in (0, 1)]
    for stage in ("shape_generation_512", "shape_generation", "structure_generation"):
        dense = stage == "structure_generation"
        for pair in pairs:
            for key in voxels:
                pair[0][1].pop(key, None)
            pair[0][1].update({} if dense else voxels | {"trellis2_generation_mode": stage})
        latent = {"samples": torch.zeros(1, 32, *((16, 16, 16) if dense else (12, 1)))}

        def act(model: Any, latent: Any = latent) -> torch.Tensor:
            return running.sample(model, "Trellis2", steps=4, cfg=3.0, latent=latent, positive=pairs[0], negative=pairs[1])

        expected = magpolicy.simulate(CURVE, steps=4, threshold=1.0, max_skips=2, retention=0.2)
        running.check(patcher, CURVE, expected, act, threshold=1.0, max_skips=2)


@pytest.mark.parametrize("name", models.TINY)
def test_auto_is_no_error_for_any_model(comfyui: Path, home: Path, name: str) -> None:
    """Speed up, and MagCache with ``auto``: what has no preset goes by the prior."""
    from magpolicy_comfyui import NODE_CLASS_MAPPINGS
    from magpolicy_comfyui._runs import attached

    patcher = models.make(name)
    rule = {"magcache_thresh": 0.24, "retention_ratio": 0.2, "magcache_K": 4}
    for node, inputs in {
        "MagPolicySpeedUp": {"speedup": "balanced", "learn": "off"},
        "MagCache": {"model_type": "auto"} | rule,
    }.items():
        (model,) = NODE_CLASS_MAPPINGS[node]().apply(model=patcher, **inputs)
        running.sample(model, name, steps=6, cfg=3.0)
        attachment = attached(model)
        assert attachment is not None
        assert attachment.run_report is not None
        report = attachment.run_report.report
        assert report.skipped > 0
        assert node == "MagCache" or (report.computed, attachment.run_report.notes) == (3, [])
        planned = "general prior" in report.source
        assert node != "MagCache" or planned == any("no preset was" in note for note in attachment.run_report.notes)


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
    assert attachment.made.report_of(stacks[-1]) is attachment.run_report
    assert attachment.made.report_of(stacks[0]) is None  # made without a node
    full, cached = stacks[0].unbind(), stacks[-1].unbind()
    for part, other in zip(full, cached, strict=True):
        assert not torch.equal(part, other)  # both went by reused residuals


def test_the_page_of_classes_is_true(comfyui: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "comfyui-features.md").read_text(encoding="utf-8")
    section = page.partition("## Model classes")[2].partition("\n## ")[0]
    table = section.partition("|---|---|")[2].strip().splitlines()
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[2])) for line in table if line.startswith("|")]
    whole = {name for name, tiny in newer.TINY.items() if tiny.whole}
    assert rows == [newer.TINY.keys() - whole, whole, newer.NO_DENOISERS]
