"""Schedules in the forms that engines we do not drive take them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from magpolicy import _checks

FORMS = ("cache-dit", "sglang", "json")


def bins(mask: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Run lengths of computed and of skipped steps in turn, both of one length: the last run of skips may be 0 long."""
    runs = [(computes, len(list(group))) for computes, group in itertools.groupby(mask)]
    computed = tuple(length for computes, length in runs if computes)
    skipped = tuple(length for computes, length in runs if not computes)
    return computed, skipped + (0,) * (len(computed) - len(skipped))


def export(mask: Sequence[bool], form: str, content: dict[str, Any]) -> dict[str, Any]:
    """See :meth:`magpolicy.Schedule.export`."""
    _checks.one_of("form", form, FORMS)
    if form == "json":
        return content
    if form == "sglang":
        computed, skipped = (",".join(map(str, part)) for part in bins(mask))
        return {
            "SGLANG_CACHE_DIT_ENABLED": "true",
            "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": computed,
            "SGLANG_CACHE_DIT_SCM_CACHE_BINS": skipped,
            "SGLANG_CACHE_DIT_SCM_POLICY": "static",
        }
    return {"steps_computation_mask": [int(m) for m in mask], "steps_computation_policy": "static"}
