"""What a running ComfyUI tells the browser while it works on a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from host import Server

_ENDS = ("execution_success", "execution_error", "execution_interrupted")


def run(server: Server, prompt: Mapping[str, Any], timeout: float = 120.0) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Queue ``prompt`` as the browser does; its history entry, and all messages of its run as (event, data)."""
    return asyncio.run(asyncio.wait_for(_run(server, prompt), timeout))


async def _run(server: Server, prompt: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    import aiohttp

    heard: list[tuple[str, Any]] = []
    async with aiohttp.ClientSession(server.url) as session, session.ws_connect("/ws?clientId=test") as socket:
        async with session.post("/prompt", json={"prompt": prompt, "client_id": "test"}) as answer:
            queued = await answer.json()
        assert "prompt_id" in queued, queued
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            heard.append((event["type"], event["data"]))
            if event["type"] in _ENDS and event["data"]["prompt_id"] == queued["prompt_id"]:
                break
        for _ in range(100):  # the history is written a moment later
            async with session.get(f"/history/{queued['prompt_id']}") as answer:
                history = await answer.json()
            if queued["prompt_id"] in history:
                return history[queued["prompt_id"]], heard
            await asyncio.sleep(0.05)
    raise AssertionError("no history entry")


def reports(heard: list[tuple[str, Any]]) -> dict[str, Any]:
    """The reports among messages, by node."""
    return {data["node"]: data for event, data in heard if event == "magpolicy.report"}
