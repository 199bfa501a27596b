"""Samplers from outside, levels that are shifted on their way to the model, several calls a step: what ran is what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import models, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import magpolicy
import torch

pytestmark = pytest.mark.sampled

STEPS = 10
CURVE = magpolicy.Curve([1.0] * STEPS)
RULE = {"threshold": 1.0, "max_skips": 2, "retention": 0.2}
EXPECTED = magpolicy.simulate(CURVE, **RULE)
LAWS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Shift = Callable[[int, float], float]


def sampled(patcher: Any, name: str, sampler: Any, *, steps: int = STEPS, cfg: float = 1.0) -> torch.Tensor:
    """What a guider makes with ``sampler``, by ComfyUI's own functions."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(models.conditioning(name, 0), models.conditioning(name, 1))
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
    with running.quiet():
        made: torch.Tensor = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
    return made


def shifting(shift: Shift, wrapped: str = "euler") -> Any:
    """A sampler from outside that has a sampler of ComfyUI ask a model that is told another noise level."""
    import comfy.samplers

    inner = comfy.samplers.sampler_object(wrapped)

    def function(model: Any, x: Any, sigmas: Any, **more: Any) -> Any:
        asked = []

        def told(x: Any, sigma: Any, **extra: Any) -> Any:
            asked.append(0)
            return model(x, sigma * shift(len(asked) - 1, float(sigma.max())), **extra)

        told.inner_model, told.sigmas = model.inner_model, sigmas  # type: ignore[attr-defined]
        return inner.sampler_function(told, x, sigmas, **more, **inner.extra_options)

    return comfy.samplers.KSAMPLER(function)


def stages(positions: list[float], *, tells: str = "last") -> Any:
    """A sampler of several calls a step, at ``positions`` between a step's levels; it calls back after one, or never."""
    import comfy.samplers

    def function(model: Any, x: Any, sigmas: Any, extra_args: Any, callback: Any, disable: Any) -> Any:
        for i in range(len(sigmas) - 1):
            slopes = []
            for number, position in enumerate(positions):
                sigma = torch.lerp(sigmas[i], sigmas[i + 1], position).clamp(min=1e-3)
                denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
                slopes.append((x - denoised) / sigma)
                if tells == ("first" if number == 0 else "last" if number == len(positions) - 1 else None):
                    callback({"i": i, "denoised": denoised, "x": x, "sigma": sigma, "sigma_hat": sigma})
            x = x + sum(slopes) / len(slopes) * (sigmas[i + 1] - sigmas[i])
        return x

    return comfy.samplers.KSAMPLER(function)


def seen(patcher: Any, name: str, sampler: Any, *, cfg: float = 1.0, **more: Any) -> tuple[Any, running.Spy]:
    """The report of a sampling under the rule, and what was done; what is said is what was done."""
    node, attachment = running.under(patcher, CURVE, **(RULE | more))
    spy = running.Spy.on(node)
    assert torch.isfinite(sampled(node, name, sampler, cfg=cfg)).all()
    run = attachment.run_report
    report = run.report
    assert report.computed == sum(spy.computed), "what ran is not what is said"
    assert report.computed + report.skipped == len(spy.computed)
    assert report.strip == "".join("█" if computed else "·" for computed in spy.computed)
    assert report.estimated_speedup == pytest.approx(len(spy.computed) / sum(spy.computed))
    assert len(report.calls) == len(spy.computed)
    assert bool(report.problems) == ("unlisted" in report.reasons), "whatever computes says why"
    for index, computed in enumerate(spy.computed):
        if computed:
            assert torch.equal(spy.again(index), spy.calls[index][3]), f"call {index} computed something else"
    running.untouched(patcher)
    return run, spy


@pytest.fixture
def flux(comfyui: Path) -> Any:
    return models.make("Flux")


@pytest.mark.parametrize("wrapped", ["euler", "euler_ancestral", "dpmpp_2m", "res_multistep", "ddim", "lcm"])
@pytest.mark.parametrize(
    "shift",
    [lambda i, s: 1.0, lambda i, s: 0.95, lambda i, s: 1.0 if i < 2 else 0.7, lambda i, s: 0.9 if i % 2 else 1.1],
    ids=["none", "lying", "detail", "to_and_fro"],
)
def test_of_one_call_a_step_the_kth_call_is_the_kth_step(flux: Any, shift: Shift, wrapped: str) -> None:
    run, _ = seen(flux, "Flux", shifting(shift, wrapped))
    running.same(run.schedule, EXPECTED)
    off = sum(abs(shift(i, 0.0) - 1) > 1e-3 for i in range(STEPS))
    assert bool([note for note in run.notes if f"{off} times" in note]) == bool(off)


@LAWS
@given(factors=st.lists(st.floats(0.2, 1.3), min_size=STEPS, max_size=STEPS))
def test_whatever_the_shifts(flux: Any, factors: list[float]) -> None:
    run, _ = seen(flux, "Flux", shifting(lambda i, _: factors[i]))
    running.same(run.schedule, EXPECTED)


@pytest.mark.parametrize("which", [1, 3, 6])
def test_a_shift_to_exactly_another_level_of_the_list(flux: Any, which: int) -> None:
    """The level told is that of another step: it is still the step that the sampler is at."""
    run, _ = seen(flux, "Flux", shifting(lambda i, s: (1 - which / STEPS) / s if i >= 2 else 1.0))
    running.same(run.schedule, EXPECTED)


@LAWS
@given(
    positions=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
    tells=st.sampled_from(["first", "last", "never"]),
    shift=st.sampled_from([1.0, 0.93]),
)
def test_several_calls_a_step(flux: Any, positions: list[float], tells: str, shift: float) -> None:
    """At any levels between, called back or not: all of it is in the report, in order."""
    import comfy.samplers

    inner = stages([0.0, *positions], tells=tells)

    def function(model: Any, x: Any, sigmas: Any, **more: Any) -> Any:
        return inner.sampler_function(lambda x, sigma, **extra: model(x, sigma * shift, **extra), x, sigmas, **more)

    _, spy = seen(flux, "Flux", comfy.samplers.KSAMPLER(function))
    assert len(spy.computed) == STEPS * (1 + len(positions))
    assert sum(spy.computed) >= STEPS * len(positions), "what is not known ahead computes"


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", ["Flux", "WAN21_T2V", "SD15"])
def test_stages_in_the_middle_of_steps(comfyui: Path, name: str, cfg: float) -> None:
    """The first call of each step goes by the rule, those in the middle compute, and it is said why."""
    run, _ = seen(models.make(name), name, stages([0.0, 0.5]), cfg=cfg)
    assert run.schedule.mask[::2] == EXPECTED.mask
    assert all(run.schedule.mask[1::2])
    assert run.report.reasons["unlisted"] == STEPS * (2 if cfg > 1 else 1)
    assert "more evaluations than are known of it ahead" in run.text


@pytest.mark.parametrize("churn", [0.0, 2.0, 30.0])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_churn(flux: Any, sampler: str, churn: float) -> None:
    import comfy.samplers

    run, _ = seen(flux, "Flux", comfy.samplers.ksampler(sampler, {"s_churn": churn}))
    assert run.report.skipped > 0
    assert not run.notes
    assert "unlisted" not in run.report.reasons


@pytest.mark.parametrize("order", [2, 3])
def test_an_adaptive_sampler_computes_and_says_so(flux: Any, order: int) -> None:
    import comfy.samplers

    run, spy = seen(flux, "Flux", comfy.samplers.ksampler("dpm_adaptive", {"order": order}))
    assert all(spy.computed)
    assert run.report.estimated_speedup == 1.0
    assert "chooses its noise levels by what the model returns" in run.text


def test_blocks_that_cannot_be_told_are_in_the_report(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from magpolicy_comfyui import _denoiser

    def fails(*_: Any) -> None:
        raise magpolicy.AdapterError("its blocks cannot be told")

    monkeypatch.setattr(_denoiser, "stack_of", fails)
    node, attachment = running.under(flux, CURVE, **RULE)
    running.sample(node, "Flux", steps=STEPS)
    assert attachment.run_report.report.strip == "█" * STEPS
    assert "every step computes: its blocks cannot be told" in attachment.run_report.text


def test_a_wrapper_that_evaluates_twice(flux: Any) -> None:
    """Another node around the evaluation asks for a second one: that has no place, and is counted."""
    from comfy.patcher_extension import WrappersMP

    def twice(executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        executor(x, timestep * 0.9, *args, **kwargs)
        return executor(x, timestep, *args, **kwargs)

    import comfy.samplers

    flux.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "another", twice)
    _, spy = seen(flux, "Flux", comfy.samplers.sampler_object("euler"))
    assert len(spy.computed) == 2 * STEPS


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("name", ["Flux", "SDXL"])
def test_a_guider_that_is_called_in_its_own_way_skips_like_another(comfyui: Path, name: str, sampler: str, cfg: float) -> None:
    """Guiders of node packs go around ComfyUI's wrapper of an evaluation: their evaluations are told by the noise level."""
    import comfy.samplers

    class Own(comfy.samplers.CFGGuider):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            made: torch.Tensor = self.predict_noise(*args, **kwargs)
            return made

    patcher, made, reports = models.make(name), [], []
    for kind in (comfy.samplers.CFGGuider, Own):
        node, attachment = running.under(patcher, CURVE, **RULE)
        guider = kind(node)
        guider.set_conds(models.conditioning(name, 0), models.conditioning(name, 1))
        guider.set_cfg(cfg)
        sigmas = comfy.samplers.calculate_sigmas(node.get_model_object("model_sampling"), "simple", STEPS)
        noise = torch.randn(1, *models.TINY[name].latent, generator=torch.Generator().manual_seed(1))
        with running.quiet():
            method = comfy.samplers.sampler_object(sampler)
            made.append(guider.sample(noise, torch.zeros_like(noise), method, sigmas, disable_pbar=True, seed=1))
        reports.append(attachment.run_report.report)
    assert torch.equal(*made)
    assert reports[1].strip == reports[0].strip
    assert reports[0].skipped > 0
