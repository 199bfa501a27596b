"""Where a run lies on the noise schedule: laws, on ComfyUI's own model_sampling."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LAWS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LISTS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


SHIFTS = st.one_of(st.none(), st.floats(1.0, 12.0))


def listed(kind: str, scheduler: str, steps: int, shift: float | None) -> tuple[Any, list[float]]:
    """What a scheduler of ComfyUI makes of ``steps``, and the sampling it is for."""
    import comfy.samplers

    flow = kind in ("FLOW", "FLUX")
    sampling = sampling_of(kind, (None if shift is None else shift / 4 if kind == "FLUX" else shift) if flow else None)
    return sampling, [float(s) for s in comfy.samplers.calculate_sigmas(sampling, scheduler, steps)]


@pytest.mark.parametrize("kind", KINDS)
@LISTS
@given(steps=st.integers(4, 60), shift=SHIFTS)
def test_a_whole_run_of_every_scheduler_is_whole(comfyui: Path, kind: str, steps: int, shift: float | None) -> None:
    """Also where it begins nearly a step below the top, as ``ddim_uniform``; and whatever the sampler evaluates in between."""
    import comfy.samplers

    from magpolicy_comfyui._noise_levels import span_of

    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        sampling, sigmas = listed(kind, scheduler, steps, shift)
        twice = [sigma for pair in itertools.pairwise(sigmas) for sigma in pair][:-1]  # as heun
        for evaluations in (sigmas[:-1], twice):
            found = span_of(evaluations, sigmas, sampling)
            assert (found.first, found.after) == (0, 0), (scheduler, sigmas)


@pytest.mark.parametrize("kind", KINDS)
@LISTS
@given(steps=st.integers(4, 60), shift=SHIFTS, data=st.data())
def test_a_part_of_every_scheduler_is_a_part(
    comfyui: Path, kind: str, steps: int, shift: float | None, data: st.DataObject
) -> None:
    """Whatever begins a step below the top, of its own steps, or leaves noise behind."""
    import comfy.samplers

    from magpolicy_comfyui._noise_levels import span_of

    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        sampling, sigmas = listed(kind, scheduler, steps, shift)
        whole = span_of(sigmas[:-1], sigmas, sampling)
        first = data.draw(st.integers(0, len(sigmas) - 2), label="first")
        stop = data.draw(st.integers(first + 1, len(sigmas) - 1), label="stop")
        found = span_of(sigmas[first:stop], sigmas[first : stop + 1], sampling)
        begins, ends = whole.levels[first], (*whole.levels, 0.0)[stop]
        step = (begins - ends) / (stop - first)
        late = first > 0 and (1 - begins >= step or scheduler == "ddim_uniform")
        if late and ends == 0:
            assert found.first > 0, (scheduler, sigmas[first : stop + 1])
        if late or ends > 0.01:
            assert found.partial or first == 0, (scheduler, sigmas[first : stop + 1])
        if ends > 0.01:
            assert found.after > 0, (scheduler, sigmas[first : stop + 1])


@pytest.mark.parametrize("kind", ["FLOW", "FLUX", "EPS"])
@pytest.mark.parametrize("scheduler", ["ddim_uniform", "simple", "sgm_uniform"])
@LISTS
@given(steps=st.integers(4, 60), denoise=st.floats(0.1, 0.9))
def test_a_weaker_denoise_lies_where_it_was_cut_from(
    comfyui: Path, kind: str, scheduler: str, steps: int, denoise: float
) -> None:
    from magpolicy_comfyui._noise_levels import span_of

    sampling, sigmas = listed(kind, scheduler, int(steps / denoise), None)
    part = sigmas[-(steps + 1) :]
    found = span_of(part[:-1], part, sampling)
    assert found.partial == (len(part) < len(sigmas))
    assert found.after == 0
    cut = len(sigmas) - len(part)  # steps are cut to the entries of a table, so a short part says it less exactly
    assert abs(found.first - cut) <= 1 + 0.03 * len(sigmas)


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
    found = dry_run(comfy.samplers.sampler_object(sampler), guider, sigmas, 3, 4)
    assert found.known
    assert torch.equal(torch.get_rng_state(), before)
    assert found.sigmas == pytest.approx(spy.sigmas)
