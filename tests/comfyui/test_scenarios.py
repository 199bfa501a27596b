"""What people do with ComfyUI, on real sampling: it runs as simulated, and what is not skipped is as without a node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import models, running
from host.running import PRESETS, RULE

import magpolicy
import torch

pytestmark = pytest.mark.sampled

FEW = ("Flux", "WAN21_T2V")
Model = tuple[str, Any]


@pytest.fixture
def flux(comfyui: Path) -> Any:
    return models.make("Flux")


def simulated(name: str, steps: int, **more: Any) -> magpolicy.Schedule:
    return magpolicy.simulate(PRESETS[name], steps=steps, **(RULE | more))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 30, 60, "own"])
@pytest.mark.parametrize("name", PRESETS)
def test_numbers_of_steps(comfyui: Path, name: str, steps: int | str) -> None:
    count = magpolicy.preset(PRESETS[name]).steps if steps == "own" else int(steps)
    _, attachment = once(models.make(name), name, steps=count)
    running.same(attachment.run_report.schedule, simulated(name, count))


def once(patcher: Any, name: str, settings: dict[str, Any] | None = None, **how: Any) -> tuple[torch.Tensor, Any]:
    """One sampling under the policy of the model's preset, with what was attached."""
    node, attachment = running.under(patcher, PRESETS[name], **(settings or {}))
    return running.sample(node, name, **how), attachment


@pytest.mark.parametrize("layout", ["batched", "separate", "alternating"])
@pytest.mark.parametrize("name", PRESETS)
def test_guidance(comfyui: Path, name: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory decides whether both conditions come in one call; it may decide otherwise at the next step."""
    patcher = models.make(name)
    calls = iter(range(10_000))
    free = {
        "batched": lambda *a, **k: 0.0,
        "separate": lambda *a, **k: float("inf"),
        "alternating": lambda *a, **k: float("inf") if next(calls) % 3 else 0.0,
    }[layout]
    monkeypatch.setattr(patcher.model, "memory_required", free)
    if layout == "alternating":  # which calls are joint is up to the counter: no schedule to compare with, but all else holds
        _, attachment = once(patcher, name, cfg=3.0, steps=12)
        report = attachment.run_report.report
        assert report.skipped > 0
        assert not {"mismatch", "unsupported"} & report.reasons.keys()
        return
    expected = magpolicy.simulate(PRESETS[name], steps=12, batched=layout == "batched", **RULE)
    running.check(patcher, PRESETS[name], expected, lambda m: running.sample(m, name, cfg=3.0, steps=12))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(
    "how",
    [
        {"batch": 2, "cfg": 3.0},
        {"batch": 3},
        {"positive": 5, "cfg": 3.0},
        {"scheduler": "beta"},
        {"scheduler": "karras"},
        {"scheduler": "exponential"},
        {"scheduler": "sgm_uniform"},
        {"scheduler": "normal"},
    ],
    ids=lambda how: "-".join(f"{k}={v}" for k, v in how.items()),
)
def test_batches_prompts_and_schedulers(comfyui: Path, name: str, how: dict[str, Any]) -> None:
    patcher = models.make(name)
    if "positive" in how:  # prompts of different lengths
        how = how | {"positive": models.conditioning(name, 0, tokens=how["positive"])}
    running.check(patcher, PRESETS[name], seen(patcher, name), lambda m: running.sample(m, name, **how))


def seen(patcher: Any, name: str) -> Callable[[running.Spy], magpolicy.Schedule]:
    """The schedule by the noise levels that were evaluated: by number where steps are even, else by the levels."""

    def simulate(spy: running.Spy) -> magpolicy.Schedule:
        levels = running.shares(patcher, spy.sigmas)
        count = len(levels)
        even = all(abs(level - (1 - i / count)) < 2e-3 for i, level in enumerate(levels))
        return simulated(name, count) if even else magpolicy.simulate(PRESETS[name], sigmas=levels, **RULE)

    return simulate


SAMPLERS = (
    "euler", "euler_ancestral", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2m",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "res_multistep", "uni_pc", "uni_pc_bh2", "lcm", "ddim",
    "deis", "ipndm", "gradient_estimation", "er_sde", "seeds_2", "seeds_3", "sa_solver",
)  # fmt: skip


SAMPLED = [*(("Flux", sampler) for sampler in SAMPLERS), *(("WAN21_T2V", sampler) for sampler in SAMPLERS[:12:3])]


@pytest.mark.parametrize(("name", "sampler"), SAMPLED, ids=["-".join(pair) for pair in SAMPLED])
def test_samplers(comfyui: Path, name: str, sampler: str) -> None:
    """Several evaluations a step, midpoints, history: each evaluation has its place on the noise schedule."""
    import comfy.samplers

    if sampler not in comfy.samplers.SAMPLER_NAMES:
        pytest.skip("not in this ComfyUI")
    patcher = models.make(name)
    attachment = running.check(
        patcher, PRESETS[name], seen(patcher, name), lambda m: running.sample(m, name, sampler=sampler, steps=10)
    )
    assert attachment.run_report.report.skipped > 0
    assert not attachment.run_report.notes


def test_a_sampler_that_follows_the_model_computes(flux: Any) -> None:
    """The adaptive sampler chooses its noise levels by what the model returns: they cannot be known ahead."""
    node, attachment = running.under(flux, "flux")
    assert torch.isfinite(running.sample(node, "Flux", sampler="dpm_adaptive", steps=4)).all()
    assert "chooses its noise levels by what the model returns" in attachment.run_report.text


@pytest.mark.parametrize(
    "sigmas",
    [
        [1.0, 0.8, 0.8, 0.6, 0.6, 0.6, 0.4, 0.2, 0.0],
        [1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0, 0.0],
        [1.0, 0.6, 0.3, 0.7, 0.5, 0.3, 0.1, 0.0],
        [0.6, 0.5, 0.4, 0.3, 0.2],
        [1.0, 0.0],
        [1.0],
    ],
    ids=["repeated", "zeros", "restart", "part", "one", "none"],
)
def test_custom_sigmas(flux: Any, sigmas: list[float]) -> None:
    node, attachment = running.under(flux, "flux")
    spy = running.Spy.on(node)
    running.custom(node, "Flux", sigmas)
    if len(sigmas) < 2:
        assert attachment.run_report is None
        return
    trace = attachment.run_report.report.trace
    assert len(trace) == len(spy.sigmas)
    levels = [max(level, 1e-6) for level in running.shares(flux, spy.sigmas)]
    if sigmas[0] == 1.0 and sigmas[-1] == 0.0:
        running.same(attachment.run_report.schedule, magpolicy.simulate("flux", sigmas=levels, **RULE))


@pytest.mark.parametrize("name", FEW)
def test_denoise_half(comfyui: Path, name: str) -> None:
    """The second half of a schedule: ratios of its noise levels, and the retention of the beginning is over."""
    patcher = models.make(name)
    latent = {"samples": torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(0))}
    expected = simulated(name, 20, part=(10, 20))
    attachment = running.check(
        patcher, PRESETS[name], expected, lambda m: running.sample(m, name, steps=10, denoise=0.5, latent=latent)
    )
    assert attachment.run_report.span.first == 10


@pytest.mark.parametrize("name", FEW)
def test_two_stages_of_one_model(comfyui: Path, name: str) -> None:
    patcher = models.make(name)
    node, attachment = running.under(patcher, PRESETS[name])
    half = running.sample(node, name, steps=20, start_step=0, last_step=10)
    first = attachment.run_report
    running.sample(node, name, steps=20, start_step=10, last_step=20, latent={"samples": half}, disable_noise=True)
    second = attachment.run_report
    whole = simulated(name, 20)
    assert _strip(first.schedule.mask) == whole.strip[:10]
    running.same(second.schedule, simulated(name, 20, part=(10, 20)))
    assert (first.span.first, first.span.after, second.span.first, second.span.after) == (0, 10, 10, 0)


def test_a_plan_for_a_part_of_the_run(flux: Any) -> None:
    node, attachment = running.under(flux, "flux", speedup=2.0)
    half = running.sample(node, "Flux", steps=20, start_step=0, last_step=10)
    first = attachment.run_report.schedule
    running.sample(node, "Flux", steps=20, start_step=10, last_step=20, latent={"samples": half}, disable_noise=True)
    second = attachment.run_report.schedule
    assert (first.steps, second.steps) == (10, 10)
    assert (first.first_step, second.first_step) == (0, 10)
    assert first.skipped > 0
    assert second.skipped > 0


def test_two_experts(comfyui: Path) -> None:
    """Wan2.2: each expert is a model of its own with a node of its own, and runs its part of one schedule."""
    high, low = models.make("WAN21_T2V"), models.make("WAN21_T2V")
    models.draw(low.model.diffusion_model, seed=2)
    nodes = [running.under(patcher, "wan2.2_t2v_14B") for patcher in (high, low)]
    half = running.sample(nodes[0][0], "WAN21_T2V", steps=20, cfg=3.0, start_step=0, last_step=8)
    running.sample(
        nodes[1][0], "WAN21_T2V", steps=20, cfg=3.0, start_step=8, last_step=20, latent={"samples": half}, disable_noise=True
    )
    ran = [attachment.run_report.schedule for _, attachment in nodes]
    sigmas = [1 - i / 20 for i in range(20)]
    for schedule, part in zip(ran, ((0, 8), (8, 20)), strict=True):
        switch = sum(running_sigma(high, s) >= 0.875 for s in sigmas)
        expected = magpolicy.simulate("wan2.2_t2v_14B", steps=20, part=part, expert_step=switch, batched=True, **RULE)
        running.same(schedule, expected)


def running_sigma(patcher: Any, share: float) -> float:
    """The model's sigma at a share of its schedule."""
    table = patcher.get_model_object("model_sampling").sigmas
    return float(table[round(share * len(table)) - 1])


@pytest.mark.parametrize("window", [(3, -1), (0, 5), (2, -4), (50, -1), (0, 60), (0, -60)], ids=str)
def test_start_and_end_step(flux: Any, window: tuple[int, int]) -> None:
    start, end = window
    _, attachment = once(flux, "Flux", {"start_step": start, "end_step": end}, steps=12)
    last = end + 12 if end < 0 else min(end, 11)
    mask = attachment.run_report.schedule.mask
    assert all(mask[i] for i in range(12) if not start <= i <= last)
    if start < 12 and last > start:
        expected = simulated("Flux", 12, start_step=start, end_step=last)
        running.same(attachment.run_report.schedule, expected)


def test_two_prompts_in_a_row_and_another_resolution(flux: Any) -> None:
    node, attachment = running.under(flux, "flux")
    first = running.sample(node, "Flux", steps=12)
    for how in ({}, {"positive": models.conditioning("Flux", 7)}, {"size": (16, 12, 16)}, {"steps": 3, "size": (16, 4, 4)}):
        running.sample(node, "Flux", **({"steps": 12} | how))
        running.same(attachment.run_report.schedule, simulated("Flux", how.get("steps", 12)))
    assert torch.equal(running.sample(node, "Flux", steps=12), first)


@pytest.mark.parametrize("fault", ["interrupt", "block"])
def test_interrupted_then_a_new_prompt(flux: Any, fault: str) -> None:
    import comfy.model_management

    node, attachment = running.under(flux, "flux")
    fresh = running.sample(node, "Flux", steps=12)
    block = flux.model.diffusion_model.single_blocks[0]
    calls = iter(range(1000))

    def fail(module: Any, args: Any) -> None:
        if next(calls) == 3:
            if fault == "block":
                raise RuntimeError("a fault in the block")
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    hook = block.register_forward_pre_hook(fail)
    try:
        with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
            running.sample(node, "Flux", steps=12, positive=models.conditioning("Flux", 5))
    finally:
        hook.remove()
    running.untouched(flux)
    assert torch.equal(running.sample(node, "Flux", steps=12), fresh)
    running.same(attachment.run_report.schedule, simulated("Flux", 12))


def test_the_node_applied_twice_is_applied_once(flux: Any) -> None:
    from magpolicy_comfyui._runs import Attachment, attach
    from magpolicy_comfyui._settings import Settings

    once_, first = running.under(flux, "flux", max_skips=1)
    twice = once_.clone()
    second = Attachment(Settings(source="flux", **RULE))
    attach(twice, second)
    running.sample(twice, "Flux", steps=12)
    running.same(second.run_report.schedule, simulated("Flux", 12))
    assert first.run_report is None
    running.sample(once_, "Flux", steps=12)
    running.same(first.run_report.schedule, simulated("Flux", 12, max_skips=1))


def test_two_clones_in_turn(flux: Any) -> None:
    one, a = running.under(flux, "flux")
    two, b = running.under(flux, "flux", max_skips=1)
    plain = running.sample(flux, "Flux", steps=12)
    results = [running.sample(model, "Flux", steps=12) for model in (one, two, one, two)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert torch.equal(running.sample(flux, "Flux", steps=12), plain)
    running.same(a.run_report.schedule, simulated("Flux", 12))
    running.same(b.run_report.schedule, simulated("Flux", 12, max_skips=1))


def test_the_model_is_untouched_between_two_calls(flux: Any) -> None:
    """Whoever else calls the same weights while a sampling is under way sees the model as it is."""
    import comfy.sample

    node, attachment = running.under(flux, "flux")
    module = flux.model.diffusion_model
    x, t = torch.full((1, 16, 8, 8), 0.3), torch.tensor([0.5])
    cond = models.conditioning("Flux", 0)[0]
    given = {"y": cond[1]["pooled_output"], "guidance": torch.tensor([3.5])}
    with torch.no_grad():
        plain = module(x, t, cond[0], **given)
    seen_there = []

    def between(step: int, *_: Any) -> None:
        running.untouched(flux)
        with torch.no_grad():
            seen_there.append(torch.equal(module(x, t, cond[0], **given), plain))

    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    pos, neg = models.conditioning("Flux", 0), models.conditioning("Flux", 1)
    with running.quiet():
        comfy.sample.sample(
            node, noise, 12, 1.0, "euler", "simple", pos, neg, torch.zeros_like(noise), callback=between, seed=1
        )
    assert seen_there == [True] * 12
    running.same(attachment.run_report.schedule, simulated("Flux", 12))


def _strip(mask: tuple[bool, ...]) -> str:
    return "".join("█" if computes else "·" for computes in mask)
