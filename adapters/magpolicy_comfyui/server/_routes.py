"""What the panel in the nodes asks ComfyUI's server: the schedule that settings give."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import magpolicy
from magpolicy.adapter import PlanningStopped, stop_planning_when
from magpolicy_comfyui.server._answers import SETTINGS, answer
from magpolicy_comfyui.server._one_at_a_time import GivenUp, OneAtATime, TooMany

ROUTE = "/magpolicy/simulate"
MAX_BYTES = 65_536


def add_routes(server: Any) -> bool:
    """Add the pack's routes to a ``PromptServer``; whether that was still to do (a pack installed twice is loaded twice)."""
    if hasattr(server, "magpolicy_previews"):
        return False
    if not hasattr(server, "routes"):
        return True  # what stands for a server in somebody's script answers no browser
    from aiohttp import web

    previews = OneAtATime()

    async def simulate(request: Any) -> Any:
        def left() -> bool:
            return request.transport is None or request.transport.is_closing()

        status, values = await asked(previews, await _body(request.content), left)
        return web.json_response(values, status=status)

    server.routes.post(ROUTE)(simulate)
    server.magpolicy_previews = previews
    return True


async def _body(content: Any) -> bytes:
    """All that was sent, which may come in pieces; no more than shows that it is too much."""
    body = b""
    while len(body) <= MAX_BYTES and (more := await content.read(MAX_BYTES + 1 - len(body))):
        body += more
    return body


async def asked(previews: OneAtATime, body: bytes, left: Callable[[], bool] = lambda: False) -> tuple[int, dict[str, Any]]:
    """The answer to a panel's question, in its turn; as :func:`preview` says, and two more.

    Args:
        previews: those that wait.
        body: as :func:`preview` takes it. With ``panel``, any text, it takes the place of an earlier question of that panel.
        left: whether whoever asked has gone away.

    Returns:
        409 with ``error`` if a newer question of the panel came, or nobody waits any more; 429 with ``error`` if many previews
        wait already.
    """
    try:
        question = _read(body)
    except magpolicy.MagPolicyError as error:
        return 400, {"error": str(error)}
    panel = question.get("panel")

    def work(given_up: Callable[[], bool]) -> tuple[int, dict[str, Any]]:
        with stop_planning_when(given_up):
            return _answered(question)

    try:
        status, values = await previews.answer(panel if isinstance(panel, str) else object(), work, left)
    except GivenUp as reason:
        return 409, {"error": str(reason)}
    except TooMany as reason:
        return 429, {"error": str(reason)}
    return status, values


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
    except magpolicy.MagPolicyError as error:
        return 400, {"error": str(error)}
    return _answered(question)


def _answered(question: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        return 200, answer(question)
    except PlanningStopped:
        raise
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
