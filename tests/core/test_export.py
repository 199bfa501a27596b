"""Schedules for engines magpolicy does not drive."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpolicy import ArgumentError, Schedule

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


def test_other_forms_are_unknown():
    with pytest.raises(ArgumentError, match="form='yaml' is not known; use one of 'cache-dit', 'sglang', 'json'"):
        Schedule.from_mask([1]).export("yaml")
