"""Conditions that come in one call and later alone, or the other way round: memory, a prompt's range or a guider decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from host import models, running

import magpolicy
import torch

pytestmark = pytest.mark.sampled

STEPS = 8
CURVE = magpolicy.Curve([1.0] * STEPS)
RULE = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
EXPECTED = magpolicy.simulate(CURVE, **RULE)


def together_until(last: int) -> Callable[..., float]:
    """Memory for both conditions at the first ``last`` times that it is asked for, and for one of them after that."""
    asked = itertools.count(1)
    return lambda *args, **kwargs: 0.0 if next(asked) <= last else float("inf")


def apart_until(last: int) -> Callable[..., float]:
    """The reverse."""
    asked = itertools.count(1)
    return lambda *args, **kwargs: float("inf") if next(asked) <= last else 0.0


NAMES = [name for name in models.TINY if name != "MiniMaxH3"]  # that one has a condition a call, always
NOT_ALIKE = {"ACEStep15", "SeedVR2"}
"""Without a node too, they make one thing of two conditions in a call and another of each alone."""


@pytest.mark.parametrize(("memory", "moments"), [(together_until, range(2, 7)), (apart_until, (2, 4))], ids=["short", "freed"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_that_changes_midway(
    comfyui: Path,
    name: str,
    memory: Callable[[int], Callable[..., float]],
    moments: Iterable[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of every model: the streams of a call are others than before, and each goes on with its own residual."""
    patcher = models.make(name)
    if name == "Hunyuan3Dv2_1" and running.version() < (0, 33):
        pytest.skip("its forward takes the batch apart into two conditions in this ComfyUI, and fails where there is one")
    steady, _ = running.under(patcher, CURVE, **RULE)
    monkeypatch.setattr(patcher.model, "memory_required", lambda *args, **kwargs: 0.0)
    expected = running.flat(running.sample(steady, name, steps=STEPS, cfg=3.0))
    sizes: set[int] = set()
    for last in moments:
        node, attachment = running.under(patcher, CURVE, **RULE)
        spy = running.Spy.on(node)
        monkeypatch.setattr(patcher.model, "memory_required", memory(last))
        made = running.flat(running.sample(node, name, steps=STEPS, cfg=3.0))
        assert torch.isfinite(made).all()
        if name not in NOT_ALIKE:  # each stream went on with its own residual, whatever order a model has its conditions in
            torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
        report = attachment.run_report.report
        assert not {"mismatch", "unsupported", "no_residual"} & report.reasons.keys(), f"asked {last} times"
        running.same(report.schedule, EXPECTED)
        sizes |= {len(call[1][0]) for call in spy.calls}
    for index in (i for i, computed in enumerate(spy.computed) if computed):
        assert torch.equal(spy.again(index), spy.calls[index][3]), f"call {index} computed something else"
    assert sizes == {models.TINY[name].frames, 2 * models.TINY[name].frames}


FAMILIES = ("Flux", "Chroma", "HunyuanVideo", "HunyuanVideo15", "AuraFlow", "HiDream", "WAN21_T2V", "QwenImage", "SD3", "LTXV")
FAMILIES += ("LTXAV", "Kandinsky5", "ErnieImage", "Krea2", "LongCatImage", "CogVideoX_T2V", "Lumina2", "ZImage", "Flux2")


@pytest.mark.parametrize("end", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_negative_prompt_for_a_part_of_the_run(comfyui: Path, name: str, end: float) -> None:
    """The range of ConditioningSetTimestepRange ends midway: from then on the positive prompt is alone."""
    patcher = models.make(name)
    negative = models.conditioning(name, 1, start_percent=0.0, end_percent=end)
    node, attachment = running.under(patcher, CURVE, **RULE)
    assert torch.isfinite(running.sample(node, name, steps=STEPS, cfg=3.0, negative=negative)).all()
    report = attachment.run_report.report
    assert not {"mismatch", "unsupported", "no_residual"} & report.reasons.keys()
    assert report.schedule.stream_mask("cond") == EXPECTED.mask


@pytest.mark.parametrize("last", range(2, 7))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_guider_that_drops_the_negative_prompt(comfyui: Path, name: str, last: int) -> None:
    import comfy.samplers

    class Guider(comfy.samplers.CFGGuider):  # type: ignore[misc, name-defined]
        asked = 0

        def predict_noise(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.asked += 1
            self.set_cfg(3.0 if self.asked <= last else 1.0)
            predicted: torch.Tensor = super().predict_noise(*args, **kwargs)
            return predicted

    patcher = models.make(name)
    node, attachment = running.under(patcher, CURVE, **RULE)
    guider = Guider(node)
    guider.set_conds(models.conditioning(name, 0), models.conditioning(name, 1))
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
    with running.quiet():
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1)
    report = attachment.run_report.report
    assert not {"mismatch", "unsupported", "no_residual"} & report.reasons.keys()
    assert report.schedule.stream_mask("cond") == EXPECTED.mask
