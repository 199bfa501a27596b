"""Schedules in other forms: as plain JSON values, and as engines take them that magpolicy does not drive."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PresetError
from magpolicy.files._names import JSON, ending_of
from magpolicy.files._writing import write_whole
from magpolicy.policy._decision import Decision

if TYPE_CHECKING:
    from magpolicy.schedule._schedule import Schedule

FORMS = ("cache-dit", "sglang", "sglang-request", "json")


def export(schedule: Schedule, form: str) -> dict[str, Any]:
    """See :meth:`magpolicy.Schedule.export`."""
    _checks.one_of("form", form, FORMS)
    if form == "json":
        return to_dict(schedule)
    _check_one_mask(schedule, form)
    if form == "cache-dit":
        return {"steps_computation_mask": schedule.steps_computation_mask, "steps_computation_policy": "static"}
    computed, skipped = bins(schedule.mask)
    if form == "sglang":
        return {
            "SGLANG_CACHE_DIT_ENABLED": "true",
            "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": ",".join(map(str, computed)),
            "SGLANG_CACHE_DIT_SCM_CACHE_BINS": ",".join(map(str, skipped)),
            "SGLANG_CACHE_DIT_SCM_POLICY": "static",
        }
    params = {"scm_compute_bins": list(computed), "scm_cache_bins": list(skipped), "scm_policy": "static"}
    return {"enable_cache_dit": True, "cache_dit_params": params}


def _check_one_mask(schedule: Schedule, form: str) -> None:
    """Engines go by one mask for all streams, which begins with a step that computes.

    Raises:
        ArgumentError: this schedule has no such mask.
    """
    if not schedule.mask[0]:
        raise ArgumentError(
            f"form={form!r}: step {schedule.first_step} skips, and engines have nothing to reuse at their first step; "
            "export a schedule whose first step computes"
        )
    for step, decided in enumerate(zip(*schedule.decisions, strict=True)):
        if len({decision.skip for decision in decided if decision is not Decision.ABSENT}) > 1:
            streams = ", ".join(schedule.streams)
            raise ArgumentError(
                f"form={form!r}: at step {schedule.first_step + step} some of the streams {streams} compute and others skip, "
                "and engines have one mask for all; plan with batched=True, or export Schedule.from_mask(schedule.mask)"
            )


def bins(mask: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many steps in a row compute, and how many skip, by turns. Both have one length: the last number of skips may be 0."""
    runs = [(computes, len(list(group))) for computes, group in itertools.groupby(mask)]
    computed = tuple(length for computes, length in runs if computes)
    skipped = tuple(length for computes, length in runs if not computes)
    return computed, skipped + (0,) * (len(computed) - len(skipped))


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """See :meth:`magpolicy.Schedule.to_dict`."""
    return {
        "steps": schedule.steps,
        "first_step": schedule.first_step,
        "computed": schedule.computed,
        "speedup": schedule.speedup if schedule.computed else None,
        "mask": [int(m) for m in schedule.mask],
        **({} if schedule.sigmas is None else {"sigmas": list(schedule.sigmas)}),
        "streams": {name: _stream(schedule, index) for index, name in enumerate(schedule.streams)},
    }


def _stream(schedule: Schedule, index: int) -> dict[str, Any]:
    """The row of one stream. What is not known is left out."""
    row: dict[str, Any] = {
        "mask": [int(m) for m in schedule.masks[index]],
        "errors": list(schedule.modelled[index]),
        "reasons": [decision.reason for decision in schedule.decisions[index]],
    }
    if any(schedule.coefficients[index]):
        row["coefficients"] = [list(coefficients) for coefficients in schedule.coefficients[index]]
    if any(schedule.checks[index]):
        row["checks"] = [check and [list(check[0]), check[1]] for check in schedule.checks[index]]
    return row


def save(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """See :meth:`magpolicy.Schedule.save`."""
    file = Path(path)
    if ending_of(file) != JSON:
        raise PresetError(f"path={str(path)!r} must end in {JSON}; try {file.stem or 'schedule'}{JSON}")
    write_whole(file, (json.dumps(to_dict(schedule), indent=1) + "\n").encode())


def arguments_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`to_dict` wrote, as arguments of :meth:`magpolicy.Schedule.from_decisions`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: ``data`` is not of that form.
    """
    streams = {str(name): row for name, row in data["streams"].items()}
    return {
        "rows": {name: _decisions(row["reasons"], row["errors"]) for name, row in streams.items()},
        "first_step": _checks.whole("first_step", data["first_step"], 0, example="0"),
        "coefficients": {name: row["coefficients"] for name, row in streams.items() if "coefficients" in row},
        "checks": {name: row["checks"] for name, row in streams.items() if "checks" in row},
        "sigmas": data.get("sigmas"),
    }


def _decisions(reasons: Sequence[str], errors: Sequence[Any]) -> list[tuple[Decision, float]]:
    return [(Decision(reason), float(error)) for reason, error in zip(reasons, errors, strict=True)]
