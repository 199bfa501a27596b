"""Schedules for engines magpolicy does not drive."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magpolicy import ArgumentError, Decision, Schedule

masks = st.lists(st.booleans(), max_size=30).map(lambda rest: [True, *rest])


def expanded(computed, skipped):
    """What cache-dit's steps_mask makes of its two lists: ones and zeros in turn."""
    return [v for c, s in itertools.zip_longest(computed, skipped, fillvalue=0) for v in [1] * c + [0] * s]


@given(masks)
def test_bins_are_the_mask(mask):
    schedule = Schedule.from_mask(mask)
    assert schedule.steps_computation_mask == [int(m) for m in mask]
    computed, skipped = schedule.bins
    assert len(computed) == len(skipped)  # some readers want as many of one as of the other
    assert all(computed)
    assert all(skipped[:-1])
    assert expanded(computed, skipped) == schedule.steps_computation_mask


@given(masks)
def test_each_form_holds_the_schedule(mask):
    schedule = Schedule.from_mask(mask)
    arguments = schedule.export("cache-dit")
    assert arguments == {"steps_computation_mask": schedule.steps_computation_mask, "steps_computation_policy": "static"}
    variables = schedule.export("sglang")
    computed, skipped = (
        [int(word) for word in variables[f"SGLANG_CACHE_DIT_SCM_{kind}_BINS"].split(",")] for kind in ("COMPUTE", "CACHE")
    )
    assert expanded(computed, skipped) == schedule.steps_computation_mask
    assert variables["SGLANG_CACHE_DIT_SCM_POLICY"] == "static"
    assert Schedule.from_dict(json.loads(json.dumps(schedule.export("json")))) == schedule
    request = json.loads(json.dumps(schedule.export("sglang-request")))  # it travels as JSON
    assert request["enable_cache_dit"] is True
    assert request["cache_dit_params"] == {"scm_compute_bins": computed, "scm_cache_bins": skipped, "scm_policy": "static"}


@given(masks)
@settings(deadline=None)
def test_cache_dit_itself_makes_the_mask_of_the_bins(mask):
    cache_dit = pytest.importorskip("cache_dit", reason="the dev extra is not installed")
    schedule = Schedule.from_mask(mask)
    params = schedule.export("sglang-request")["cache_dit_params"]
    made = cache_dit.steps_mask(
        compute_bins=params["scm_compute_bins"], cache_bins=params["scm_cache_bins"], total_steps=schedule.steps
    )
    assert made == schedule.steps_computation_mask


ENGINES = ("cache-dit", "sglang", "sglang-request")


@pytest.mark.parametrize("form", ENGINES)
def test_a_schedule_that_begins_with_a_skip_is_refused(form):
    schedule = Schedule.from_decisions({"cond": [(Decision.REUSED, 0.0), (Decision.SCHEDULED, 0.0)]}, first_step=3)
    with pytest.raises(ArgumentError, match=f"form='{form}': step 3 skips, and engines have nothing to reuse at their first"):
        schedule.export(form)
    assert schedule.export("json")["mask"] == [0, 1]


@pytest.mark.parametrize("form", ENGINES)
@given(masks=st.tuples(masks, masks))
def test_streams_that_skip_different_steps_are_refused(form, masks):
    a, b = masks
    length = min(len(a), len(b))
    schedule = Schedule.from_mask({"cond": a[:length], "uncond": b[:length]})
    differ = [step for step in range(length) if a[step] != b[step]]
    if not differ:
        assert schedule.export(form) == Schedule.from_mask(a[:length]).export(form)
        return
    with pytest.raises(ArgumentError, match=rf"at step {differ[0]} some of the streams cond, uncond compute and others skip"):
        schedule.export(form)
    assert schedule.export("json")["steps"] == length


def test_a_stream_that_is_not_called_at_some_steps_does_not_count_there():
    """Guidance in a part of the run: the mask is that of the streams that are called."""
    computed, skipped, absent = (Decision.SCHEDULED, 0.0), (Decision.REUSED, 0.0), (Decision.ABSENT, 0.0)
    schedule = Schedule.from_decisions({"cond": [computed, skipped, computed], "uncond": [computed, absent, absent]})
    assert schedule.export("sglang-request")["cache_dit_params"]["scm_compute_bins"] == [1, 1]


def test_a_step_without_any_call_skips_in_every_form():
    absent = (Decision.ABSENT, 0.0)
    schedule = Schedule.from_decisions(
        {"cond": [(Decision.SCHEDULED, 0.0), absent], "uncond": [(Decision.SCHEDULED, 0.0), absent]}
    )
    assert schedule.export("sglang-request")["cache_dit_params"]["scm_cache_bins"] == [1]


def test_other_forms_are_unknown():
    with pytest.raises(
        ArgumentError, match="form='yaml' is not known; use one of 'cache-dit', 'sglang', 'sglang-request', 'json'"
    ):
        Schedule.from_mask([1]).export("yaml")
