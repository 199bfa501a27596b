"""What the page "Explore a schedule" asks: settings in, figures out, as JSON. It runs in the browser, on the real package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import magpolicy
from magpolicy.adapter import SPEEDS

THRESHOLDS = np.geomspace(0.002, 2.0, 40).tolist()
"""Those that the curve of the rule is drawn through."""


def start() -> str:
    """The models that have a published table, with the settings published for them."""
    known = magpolicy.presets()
    rows = [
        {
            "name": name,
            "family": preset.family,
            "steps": preset.steps,
            "threshold": preset.threshold,
            "max_skips": preset.max_skips,
            "retention": preset.retention,
        }
        for name, preset in known.items()
    ]
    return json.dumps({"version": magpolicy.__version__, "models": rows})


def answer(question: str) -> str:
    """The schedule that the settings give, its errors and noise levels, and the lines that run it.

    Returns:
        JSON; ``{"problem": ...}`` where the package refuses the settings, in its own words.
    """
    asked = json.loads(question)
    try:
        schedule = _schedule(asked)
        errors = magpolicy.expected_errors(_source(asked), schedule, **_run(asked))
        return json.dumps(
            {
                "mask": schedule.mask,
                "levels": _levels(asked),
                "errors": [_finite(max(of_streams)) for of_streams in zip(*errors.values(), strict=True)],
                "reasons": [_reason([row[at].reason for row in schedule.decisions]) for at in range(schedule.steps)],
                "strip": schedule.strip,
                "computed": schedule.computed,
                "speedup": schedule.speedup,
                "distance": _finite(_distance(asked, schedule)),
                "lines": _lines(asked),
                "schedule": schedule.to_dict(),
            }
        )
    except magpolicy.MagPolicyError as error:
        return json.dumps({"problem": str(error)})


def curve(question: str) -> str:
    """Expected distance over the share that computes: of the best plan for each number of steps, and of the rule."""
    asked = json.loads(question)
    try:
        plans = magpolicy.trade_off(_source(asked), **_run(asked))
        return json.dumps({"plans": _points(asked, plans), "rule": _points(asked, _by_the_rule(asked))})
    except magpolicy.MagPolicyError as error:
        return json.dumps({"problem": str(error)})


def _source(asked: dict[str, Any]) -> str | None:
    return asked["model"] or None


def _levels(asked: dict[str, Any]) -> list[float]:
    """The noise level of each evaluation: even flow levels, shifted; a second-order sampler repeats all but the first."""
    steps, shift = asked["steps"], asked["shift"]
    even = [1 - i / steps for i in range(steps)]
    levels = [shift * s / (1 + (shift - 1) * s) for s in even]
    return levels if asked["evaluations"] == 1 else [s for level in levels for s in (level, level)][1:]


def _run(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["model"] and asked["shift"] == 1 and asked["evaluations"] == 1:
        return {"steps": asked["steps"]}
    return {"sigmas": _levels(asked)}


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["by"] == "speedup":
        return {"speedup": asked["speedup"]}
    return {"threshold": asked["threshold"], "max_skips": asked["max_skips"], "retention": asked["retention"]}


def _schedule(asked: dict[str, Any]) -> magpolicy.Schedule:
    decide = magpolicy.plan if asked["by"] == "speedup" else magpolicy.simulate
    if asked["by"] != "speedup" and not asked["model"]:
        raise magpolicy.ArgumentError("a threshold needs a published table; choose a model, or a speedup")
    return decide(_source(asked), **_settings(asked), **_run(asked))


def _distance(asked: dict[str, Any], schedule: magpolicy.Schedule) -> float:
    return magpolicy.expected_distance(_source(asked), schedule, **_run(asked))


def _by_the_rule(asked: dict[str, Any]) -> list[magpolicy.Schedule]:
    """The rule's schedules as its threshold rises, each once; none where there is no table to go by."""
    if not asked["model"]:
        return []
    of_rule = {"max_skips": [asked["max_skips"]], "retentions": [asked["retention"]]}
    rows = magpolicy.sweep(asked["model"], thresholds=THRESHOLDS, **of_rule, **_run(asked))
    return list({row.schedule: None for row in rows})


def _points(asked: dict[str, Any], schedules: Sequence[magpolicy.Schedule]) -> list[dict[str, Any]]:
    points = [(schedule, _distance(asked, schedule)) for schedule in schedules]
    return [
        {"share": 1 / schedule.speedup, "speedup": schedule.speedup, "computed": schedule.computed, "distance": distance}
        for schedule, distance in points
        if 0 < distance < math.inf
    ]


def _lines(asked: dict[str, Any]) -> dict[str, str]:
    """What to copy: the call that runs it, the code that previews it, the node's settings."""
    by_speed, given = asked["by"] == "speedup", ", ".join(f"{name}={value}" for name, value in _settings(asked).items())
    preset = "" if by_speed or not asked["model"] else f"preset={asked['model']!r}, "
    source, call = (repr(asked["model"]) if asked["model"] else "None"), "plan" if by_speed else "simulate"
    by_number = "steps" in _run(asked)
    run, before = (f"steps={asked['steps']}", "") if by_number else ("sigmas=levels", _levels_as_code(asked))
    return {
        "run": f"import magpolicy\n\nmagpolicy.attach(pipe, {preset}{given})",
        "preview": f"import magpolicy\n\n{before}print(magpolicy.{call}({source}, {run}, {given}))",
        "node": _node(asked),
    }


def _levels_as_code(asked: dict[str, Any]) -> str:
    steps, shift = asked["steps"], asked["shift"]
    lines = [f"levels = [1 - i / {steps} for i in range({steps})]"]
    if shift != 1:
        lines.append(f"levels = [{shift:g} * s / (1 + ({shift:g} - 1) * s) for s in levels]")
    if asked["evaluations"] == 2:
        lines.append("levels = [s for level in levels for s in (level, level)][1:]")
    return "".join(f"{line}\n" for line in lines)


def _node(asked: dict[str, Any]) -> str:
    if asked["by"] == "speedup":
        named = next((name for name, speed in SPEEDS.items() if speed == asked["speedup"]), None)
        rows = {"speedup": named} if named else {"speedup": "custom", "custom_speedup": asked["speedup"]}
        title = "Speed up (magpolicy)"
    else:
        rows = {
            "model_type": "auto",
            "magcache_thresh": asked["threshold"],
            "retention_ratio": asked["retention"],
            "magcache_K": asked["max_skips"],
        }
        title = "MagCache (magpolicy)"
    return "\n".join([title, *(f"  {name}: {value}" for name, value in rows.items())])


def _reason(reasons: list[str]) -> str:
    return " / ".join(dict.fromkeys(reasons))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
