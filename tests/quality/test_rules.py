"""The lab's own arithmetic: rules of others as their papers write them, evenly spaced masks."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("diffusers", reason="the lab compares diffusers models")
pytest.importorskip("skimage", reason="the lab needs the demo extra")

from benchmarks.quality import rules
from benchmarks.quality.methods import uniform_mask


def test_teacache_adds_up_rescaled_changes_until_the_threshold() -> None:
    rule = rules.Accumulator(threshold=1.0, last=7, polynomial=(2.0, 0.1))  # 2 x + 0.1
    changes = [None, 0.2, 0.1, 0.1, 0.0, 0.45, 0.1, 0.0]
    # sums: -, 0.5, 0.8, 1.1 (computes, back to 0), 0.1, 1.1 (computes), 0.3, and the last step always computes
    assert [rule.computes(c) for c in changes] == [True, False, False, True, False, True, False, True]


def test_easycache_predicts_the_outputs_change_from_the_inputs() -> None:
    rule = rules.Rate(threshold=0.5, warmup=2, last=6)
    assert rule.computes(0.0, 1.0)
    assert rule.computes(1.0, 2.0)
    rule.measured(input_change=1.0, output_change=0.5)  # rate 0.5
    assert not rule.computes(1.0, 2.0)  # 0.25
    assert not rule.computes(0.4, 1.0)  # 0.45
    assert rule.computes(1.0, 2.0)  # 0.70
    assert rule.total == 0.0
    assert not rule.computes(1.0, 2.0)
    assert rule.computes(0.0, 1.0), "the last step"


def test_easycache_computes_until_it_has_a_rate() -> None:
    rule = rules.Rate(threshold=9.0, warmup=0, last=9)
    assert [rule.computes(1.0, 1.0) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("steps", [8, 28, 30])
@pytest.mark.parametrize("ends", [True, False])
def test_uniform_masks_compute_as_many_steps_as_asked(steps: int, ends: bool) -> None:
    for computed in range(3, steps + 1):
        mask = uniform_mask(steps, computed, ends=ends)
        assert sum(mask) == computed
        assert mask[0]
        gaps = np.diff(np.flatnonzero(mask))[1 if ends else 0 :]
        assert max(gaps, default=1) - min(gaps, default=1) <= 1
        assert not ends or (mask[1] and mask[-1])
