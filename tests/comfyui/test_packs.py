"""Node packs of other people beside ours, as they are: never skipping is bit-equal, and the report says what ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import models, running
from host.packs import pack

import magpolicy
import torch

STEPS = 12
CURVE = magpolicy.Curve([1.0] * STEPS)
RULE = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
EXPECTED = magpolicy.simulate(CURVE, **RULE)


def sampled(patcher: Any, name: str, sampler: Any, cfg: float = 1.0) -> torch.Tensor:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(models.conditioning(name, 0), models.conditioning(name, 1))
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    with running.quiet():
        made: torch.Tensor = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
    return made


def law(patcher: Any, act: Callable[[Any], torch.Tensor]) -> Any:
    """Never skipping is bit-equal; what ran is what the report says. Gives the report of the run that skipped."""
    plain = act(patcher)
    left = [name for name, module in patcher.model.named_modules() if "forward" in vars(module)]
    never, idle = running.under(patcher, CURVE, **(RULE | {"threshold": 0.0, "max_skips": 0, "retention": 1.0}))
    assert torch.equal(act(never), plain), "a policy that never skips changed the result"
    assert idle.run_report.report.skipped == 0
    node, attachment = running.under(patcher, CURVE, **RULE)
    spy = running.Spy.on(node)
    assert torch.isfinite(act(node)).all()
    report = attachment.run_report.report
    assert report.computed == sum(spy.computed)
    assert report.strip == "".join("█" if computed else "·" for computed in spy.computed)
    if not left and not patcher.object_patches:  # else the pack's own are still on it
        running.untouched(patcher)
    return attachment.run_report


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V"])
@pytest.mark.parametrize("node", ["detail_daemon", "lying_sigma"])
def test_detail_daemon(comfyui: Path, node: str, name: str, cfg: float) -> None:
    import comfy.samplers

    nodes, euler = pack("ComfyUI-Detail-Daemon").NODE_CLASS_MAPPINGS, comfy.samplers.sampler_object("euler")
    if node == "lying_sigma":
        (sampler,) = nodes["LyingSigmaSampler"].go(euler, -0.05, start_percent=0.1, end_percent=0.9)
    else:
        (sampler,) = nodes["DetailDaemonSamplerNode"].go(
            euler, detail_amount=0.8, start=0.2, end=0.8, bias=0.5, exponent=1.0, start_offset=0.0, end_offset=0.0, fade=0.0,
            smooth=True, cfg_scale_override=0.0,
        )  # fmt: skip
    run = law(models.make(name), lambda m: sampled(m, name, sampler, cfg))
    running.same(run.schedule, EXPECTED)
    assert "was told another noise level" in run.text


@pytest.mark.parametrize("sampler", ["res_2m", "res_2s", "res_3s", "res_2s_ode", "deis_2m"])
@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V"])
def test_res4lyf(comfyui: Path, name: str, sampler: str) -> None:
    pack("RES4LYF")
    import comfy.samplers

    made = comfy.samplers.ksampler(sampler)
    run = law(models.make(name), lambda m: sampled(m, name, made))
    if sampler.startswith(("res_2s", "res_3s")):
        assert run.report.reasons["unlisted"] > 0
        assert "more evaluations than are known of it ahead" in run.text
    assert run.report.skipped > 0


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_tiled_diffusion(comfyui: Path, method: str, order: str) -> None:
    """Each tile is a call of its own about the same conditions."""
    node = pack("ComfyUI-TiledDiffusion").NODE_CLASS_MAPPINGS["TiledDiffusion"]
    patcher = models.make("SDXL")
    act = lambda m: running.sample(m, "SDXL", steps=STEPS, size=(4, 16, 16))  # noqa: E731
    tile = lambda m: node().apply(m, method, 64, 64, 16, 1)[0]  # noqa: E731
    plain = act(tile(patcher))
    idle = {"threshold": 0.0, "max_skips": 0, "retention": 1.0}
    for settings in (idle, {}):
        if order == "before":
            under, attachment = running.under(tile(patcher), CURVE, **(RULE | settings))
        else:
            bare, attachment = running.under(patcher, CURVE, **(RULE | settings))
            under = tile(bare)
        made = act(under)
        assert torch.isfinite(made).all()
        report = attachment.run_report.report
        if settings:
            assert torch.equal(made, plain)
        else:
            assert report.skipped > 0 or report.problems, attachment.run_report.text


@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "HunyuanVideo"])
def test_nag(comfyui: Path, name: str) -> None:
    """Normalized attention guidance: its guider puts other functions in the place of the model's and of its blocks'."""
    nodes = pack("ComfyUI-NAG").NODE_CLASS_MAPPINGS
    guider_of = nodes["NAGGuider"]() if "NAGGuider" in nodes else nodes["NAGCFGGuider"]()
    import comfy.samplers

    def act(patcher: Any) -> torch.Tensor:
        pos, neg = models.conditioning(name, 0), models.conditioning(name, 1)
        (guider,) = getattr(guider_of, guider_of.FUNCTION)(patcher, pos, neg, 5.0, 2.5, 0.25, 0.0, models.latent(name))
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
        noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
        with running.quiet():
            made: torch.Tensor = guider.sample(
                noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1
            )
        return made

    try:
        act(models.make(name))
    except Exception as error:
        pytest.skip(f"it does not run on this model by itself: {type(error).__name__}: {error}")
    run = law(models.make(name), act)
    assert run.report.skipped > 0 or run.report.problems, run.text


@pytest.mark.parametrize("name", ["WAN21_T2V", "Flux"])
def test_kj_nodes(comfyui: Path, name: str) -> None:
    """Functions put in the place of a model's attention: enhance-a-video, NAG."""
    nodes = pack("ComfyUI-KJNodes").NODE_CLASS_MAPPINGS
    if name == "WAN21_T2V":
        node = nodes["WanVideoEnhanceAVideoKJ"]()
        made = getattr(node, node.FUNCTION)(models.make(name), 2.0, models.latent(name, 1, None))
    else:
        node = nodes["ModelMemoryUsageFactorOverride"]() if "ModelMemoryUsageFactorOverride" in nodes else None
        if node is None:
            pytest.skip("not in this version")
        made = getattr(node, node.FUNCTION)(models.make(name), 1.5)
    run = law(made[0], lambda m: running.sample(m, name, steps=STEPS, cfg=1.0))
    running.same(run.schedule, EXPECTED)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_two_packs_and_ours(comfyui: Path, order: str) -> None:
    """Detail Daemon around the sampler, and KJNodes' attention on the model, put on before ours or after."""
    import comfy.samplers

    name, daemon = "WAN21_T2V", pack("ComfyUI-Detail-Daemon").NODE_CLASS_MAPPINGS["LyingSigmaSampler"]
    node = pack("ComfyUI-KJNodes").NODE_CLASS_MAPPINGS["WanVideoEnhanceAVideoKJ"]()
    (sampler,) = daemon.go(comfy.samplers.sampler_object("euler"), -0.05, start_percent=0.1, end_percent=0.9)
    enhance = lambda m: getattr(node, node.FUNCTION)(m, 2.0, models.latent(name, 1, None))[0]  # noqa: E731
    patcher = models.make(name)
    plain = sampled(enhance(patcher), name, sampler, 3.0)
    assert not torch.equal(plain, sampled(patcher, name, sampler, 3.0))
    for settings in (RULE, {"threshold": 0.0, "max_skips": 0, "retention": 1.0}):
        if order == "ours first":
            bare, attachment = running.under(patcher, CURVE, **settings)
            under = enhance(bare)
        else:
            under, attachment = running.under(enhance(patcher), CURVE, **settings)
        made = sampled(under, name, sampler, 3.0)
        assert torch.equal(made, plain) is (settings is not RULE)
        if settings is RULE:
            running.same(attachment.run_report.schedule, EXPECTED)
