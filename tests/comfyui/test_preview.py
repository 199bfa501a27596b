"""What the panel shows before a run, against what ComfyUI then does: its own samplers, its own noise levels, a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from host import models

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
    return _preview.schedule(_inputs.settings_of(**chosen), preset, asked, flux=preset.family == "flux")


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
        assert (remark is not None) == (name in _preview._DRAWING), name


def test_nothing_left_to_sample_is_told(comfyui: Path) -> None:
    from magpolicy import ArgumentError

    with pytest.raises(ArgumentError, match="start_at_step=20: nothing"):
        previewed({"steps": 14, "sampler_name": "euler", "scheduler": "simple", "start_at_step": 20})
