"""What the panel in the nodes asks ComfyUI's server: the schedule that settings give."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import magpolicy
from magpolicy_comfyui.server._answers import SETTINGS, answer

ROUTE = "/magpolicy/simulate"
MAX_BYTES = 65_536


def add_routes(server: Any) -> bool:
    """Add the pack's routes to a ``PromptServer``; whether that was still to do (a pack installed twice is loaded twice)."""
    if getattr(server, "magpolicy_routes", False):
        return False
    if not hasattr(server, "routes"):
        return True  # what stands for a server in somebody's script answers no browser
    from aiohttp import web

    async def simulate(request: Any) -> Any:
        body = await request.content.read(MAX_BYTES + 1)
        status, values = await asyncio.to_thread(preview, body)
        return web.json_response(values, status=status)

    server.routes.post(ROUTE)(simulate)
    server.magpolicy_routes = True
    return True


def preview(body: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to a panel's question: an HTTP status, and JSON values.

    Args:
        body: JSON, ``{"node": "MagCache", "inputs": {"model_type": ..., ...}, "sampler": {"steps": 20, ...}}``, with the class
            of the node, its widgets, and those of the sampler behind it (:class:`magpolicy_comfyui.server._preview.Sampler`).
            Settings left out are the preset's, and so are the steps. With ``seen``, what a report said of the model under
            ``model``, the answer is about that model.

    Returns:
        200 with ``headline``, ``strip``, ``text``, ``schedule`` (:meth:`magpolicy.Schedule.to_dict`), ``decides`` and
        ``advice`` (:class:`magpolicy_torch.Report`) and ``notes``; or 400 with ``error``, the library's message in the node's
        names.
    """
    try:
        question = _read(body)
        return 200, answer(question)
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
