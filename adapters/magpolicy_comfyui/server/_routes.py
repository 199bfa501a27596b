"""What the panel in the nodes asks ComfyUI's server: the schedule that settings give."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import magpolicy
from magpolicy.adapter import names_a_file

ROUTE = "/magpolicy/simulate"
MAX_BYTES = 65_536
# The nodes' names for settings, and the library's.
SETTINGS = {
    "magcache_thresh": "threshold",
    "retention_ratio": "retention",
    "magcache_K": "max_skips",
    "start_step": "start_step",
    "end_step": "end_step",
}
_KNOWN = (*SETTINGS, "model_type", "settings", "semantics", "offload", "speedup", "forecast")


def add_routes(server: Any) -> bool:
    """Add the pack's routes to a ``PromptServer``; whether that was still to do (a pack installed twice is loaded twice)."""
    if getattr(server, "magpolicy_routes", False):
        return False
    from aiohttp import web

    async def simulate(request: Any) -> Any:
        body = await request.content.read(MAX_BYTES + 1)
        status, answer = await asyncio.to_thread(preview, body)
        return web.json_response(answer, status=status)

    server.routes.post(ROUTE)(simulate)
    server.magpolicy_routes = True
    return True


def preview(body: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to a panel's question: an HTTP status, and JSON values.

    Args:
        body: JSON, ``{"inputs": {"model_type": ..., "magcache_thresh": ..., ...}, "sampler": {"steps": 20, ...}}``, with the
            widgets of the node, and of the sampler behind it (:class:`magpolicy_comfyui.server._preview.Sampler`). Settings
            left out are the preset's, and so are the steps.

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
        question: dict[str, Any] = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise magpolicy.ArgumentError(f"the request is no JSON: {error}") from None
    parts = [question.get(name) or {} for name in ("inputs", "sampler")] if isinstance(question, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise magpolicy.ArgumentError('the request must be {"inputs": {"model_type": "flux", ...}, "sampler": {"steps": 20}}')
    return question


def _in_node_names(text: str) -> str:
    """A message about the argument ``threshold=-1`` as one about the node's ``magcache_thresh=-1``."""
    names = {library: node for node, library in SETTINGS.items() if library != node} | {"preset": "model_type"}
    return re.sub(rf"\b({'|'.join(names)})\b(?==)", lambda match: names[match[1]], text)


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    from magpolicy_comfyui.nodes import _inputs, _preset_menu
    from magpolicy_comfyui.server import _preview

    inputs = question.get("inputs") or {}
    name = str(inputs.get("model_type", _preset_menu.AUTO))
    if names_a_file(name) and name not in _preset_menu.files():
        raise magpolicy.PresetError(
            f"model_type={name!r} is not one of the node's list; files belong into {_preset_menu.folder()}"
        )
    linked = [name for name in SETTINGS if inputs.get(name) is None]
    asked = bool(linked) or inputs.get("settings") == _inputs.PRESET
    preset = _preset_menu.find(name, published=asked and not inputs.get("speedup"))
    if preset is None:
        return {"headline": "auto: chosen when the model is loaded", "schedule": None, "notes": []}
    shown = {name: _default(name, preset) for name in linked} | {k: v for k, v in inputs.items() if v is not None}
    settings = _inputs.settings_of(**{name: value for name, value in shown.items() if name in _KNOWN})
    values = question.get("sampler") or {}
    sampler = _preview.Sampler.of(values, preset.steps)
    schedule, remark = _preview.schedule(settings, preset, sampler, flux=preset.family == "flux")
    if not preset.curve.assumed and sampler.shift is None:
        remark = remark or "the model's own shift is known when it runs; a step may differ"
    notes = [f"the preset's {', '.join(linked)}"] if linked else []
    notes += [f"{sampler.steps} steps, as the preset {preset.name}"] if values.get("steps") is None else []
    return {
        "headline": f"{schedule.computed} of {schedule.steps} computed · {schedule.speedup:.2f}x",
        "strip": schedule.strip,
        "text": str(schedule),
        "schedule": schedule.to_dict(),
        "preset": preset.name,
        "notes": notes + ([remark] if remark else []),
    }


def _default(name: str, preset: magpolicy.Preset) -> Any:
    return {"start_step": 0, "end_step": -1}.get(name, getattr(preset, SETTINGS[name], None))
