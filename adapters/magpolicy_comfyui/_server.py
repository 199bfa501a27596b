"""What the panel in the nodes asks ComfyUI's server: the schedule that settings give."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import magpolicy
from magpolicy import _checks

ROUTE = "/magpolicy/simulate"
MAX_BYTES = 65_536
MAX_PREVIEW = 2_000  # steps a panel can show; more would only keep the server busy
# The nodes' names for settings, and the library's.
SETTINGS = {
    "magcache_thresh": "threshold",
    "retention_ratio": "retention",
    "magcache_K": "max_skips",
    "start_step": "start_step",
    "end_step": "end_step",
}


def add_routes(server: Any) -> bool:
    """Add the pack's routes to a ``PromptServer``; whether that was still to do (a pack installed twice is loaded twice)."""
    if getattr(server, "magpolicy_routes", False):
        return False
    from aiohttp import web

    async def simulate(request: Any) -> Any:
        body = await request.content.read(MAX_BYTES + 1)
        status, answer = preview(body)
        return web.json_response(answer, status=status)

    server.routes.post(ROUTE)(simulate)
    server.magpolicy_routes = True
    return True


def preview(body: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to a panel's question: an HTTP status, and JSON values.

    Args:
        body: JSON, ``{"inputs": {"model_type": ..., "magcache_thresh": ..., ...}, "steps": 20}``. Settings left out are the
            preset's; ``steps`` left out, the preset's own number.

    Returns:
        200 with ``headline``, ``strip``, ``text``, ``schedule`` (:meth:`magpolicy.Schedule.to_dict`) and ``notes``; or 400
        with ``error``, the library's message in the node's names.
    """
    try:
        question = _read(body)
        return 200, _answer(question)
    except magpolicy.MagPolicyError as error:
        return 400, {"error": _in_node_names(str(error))}
    except Exception as error:  # a panel is no reason for a stack trace in the browser
        logging.exception("magpolicy: the preview failed")
        return 500, {"error": f"the preview failed, see the server's log: {type(error).__name__}: {error}"}


def _read(body: bytes) -> Mapping[str, Any]:
    if len(body) > MAX_BYTES:
        raise magpolicy.ArgumentError(f"the request has more than {MAX_BYTES} bytes; settings and steps are meant")
    try:
        question = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise magpolicy.ArgumentError(f"the request is no JSON: {error}") from None
    if not isinstance(question, dict) or not isinstance(question.get("inputs", {}), dict):
        raise magpolicy.ArgumentError('the request must be {"inputs": {"model_type": "flux", ...}, "steps": 20}')
    return question


def _in_node_names(text: str) -> str:
    """A message about the argument ``threshold=-1`` as one about the node's ``magcache_thresh=-1``."""
    names = {library: node for node, library in SETTINGS.items() if library != node} | {"preset": "model_type"}
    return re.sub(rf"\b({'|'.join(names)})\b(?==)", lambda match: names[match[1]], text)


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    inputs = question.get("inputs", {})
    steps = question.get("steps")
    preset = _preset(inputs.get("model_type", "auto"))
    if preset is None:
        return {"headline": "auto: chosen when the model is loaded", "schedule": None, "notes": []}
    if steps is not None:
        steps = _checks.whole("steps", steps, 1, MAX_PREVIEW, example=str(preset.steps))
    settings = {name: inputs[node] for node, name in SETTINGS.items() if inputs.get(node) is not None}
    schedule = magpolicy.simulate(preset, steps=steps, **settings)
    return {
        "headline": f"{schedule.computed} of {schedule.steps} steps computed, {schedule.speedup:.2f}x",
        "strip": schedule.strip,
        "text": str(schedule),
        "schedule": schedule.to_dict(),
        "preset": preset.name,
        "notes": [f"steps of the preset {preset.name}"] if steps is None else [],
    }


def _preset(model_type: Any) -> magpolicy.Preset | None:
    name = str(model_type)
    if name == "auto":
        return None
    if name.lower().endswith((".json", ".toml")):  # files are read by name of the preset in them, never by a path from outside
        raise magpolicy.PresetError(f"model_type={name!r} is a file; choose one of the node's list")
    return magpolicy.preset(name)
