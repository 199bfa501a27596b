"""Where a run lies on the noise schedule: laws, on ComfyUI's own model_sampling."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ["FLOW", "FLUX", "EPS", "V_PREDICTION", "FLOW_COSMOS", "EDM", "V_PREDICTION_CONTINUOUS"]


def sampling_of(kind: str, shift: float | None = None) -> Any:
    import comfy.model_base

    found = comfy.model_base.model_sampling(None, getattr(comfy.model_base.ModelType, kind))
    if shift is not None:
        found.set_parameters(shift=shift)
    return found


def simple(sampling: Any, steps: int) -> list[float]:
    import comfy.samplers

    return [float(s) for s in comfy.samplers.calculate_sigmas(sampling, "simple", steps)]


@pytest.mark.parametrize("kind", KINDS)
@LAWS
@given(steps=st.integers(1, 100), data=st.data())
def test_parts_are_parts_of_the_whole(comfyui: Path, kind: str, steps: int, data: st.DataObject) -> None:
    """Any cut of an evenly spaced schedule is placed where it was cut from."""
    from magpolicy_comfyui._noise_levels import span_of

    sampling = sampling_of(kind)
    sigmas = simple(sampling, steps)
    first = data.draw(st.integers(0, steps - 1), label="first")
    stop = data.draw(st.integers(first + 1, steps), label="stop")
    found = span_of(sigmas[first:stop], sigmas[first : stop + 1], sampling)
    if stop - first > 3 * steps**2 / len(sampling.sigmas):  # ComfyUI's tables have a thousand entries, which steps are cut to
        assert (found.first, found.after) == (first, steps - stop)
        assert found.even
    assert abs(found.first / found.steps - first / steps) < 0.05
    assert found.partial == ((first, stop) != (0, steps))
    assert all(0 < level <= 1 for level in found.levels)
    whole = found.whole(found.levels)
    assert len(whole) == found.steps
    assert all(a > b for a, b in itertools.pairwise(whole))


@LAWS
@given(steps=st.integers(2, 60), one=st.floats(1.0, 12.0), other=st.floats(1.0, 12.0))
def test_the_shift_of_a_schedule_does_not_matter(comfyui: Path, steps: int, one: float, other: float) -> None:
    """Published tables count by share of the run, whatever shift it had."""
    from magpolicy_comfyui._noise_levels import span_of

    places = []
    for shift in (one, other):
        sampling = sampling_of("FLOW", shift)
        sigmas = simple(sampling, steps)
        places.append(span_of(sigmas[:-1], sigmas, sampling))
    assert places[0].levels == pytest.approx(places[1].levels, abs=2e-3)


@LAWS
@given(sigmas=st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=40))
def test_any_list_has_a_place(comfyui: Path, sigmas: list[float]) -> None:
    from magpolicy_comfyui._noise_levels import span_of, steps_of

    found = span_of(sigmas[:-1], sigmas, sampling_of("FLUX"))
    assert found.first >= 0
    assert found.after >= 0
    assert len(found.whole(found.levels)) == found.steps
    steps = steps_of(sigmas[:-1], sigmas)
    assert steps == list(range(len(sigmas) - 1))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_sde", "uni_pc", "dpmpp_2m_cfg_pp", "ddim"])
def test_a_rehearsal_leaves_no_trace(comfyui: Path, sampler: str) -> None:
    """The random state is as before, and the rehearsal says what the sampler then does."""
    import comfy.samplers
    from host import models, running

    import torch
    from magpolicy_comfyui._dry_run import dry_run

    patcher = models.make("Flux")
    spied = patcher.clone()
    spy = running.Spy.on(spied)
    running.sample(spied, "Flux", steps=6, sampler=sampler)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_model = patcher.model
    sigmas = comfy.samplers.KSampler(patcher, 6, "cpu", sampler, "simple").sigmas
    before = torch.get_rng_state()
    evaluations, known = dry_run(comfy.samplers.sampler_object(sampler), guider, sigmas, 3, 4)
    assert known
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluations == pytest.approx(spy.sigmas)
