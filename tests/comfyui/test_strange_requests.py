"""What strangers ask the server, and what a workflow's file gives the nodes: an answer or a message, soon, and no stack trace.

Real questions are mutated: values, keys and bytes. ``tests/data/strange_requests`` keeps those that once broke something.
``MAGPOLICY_FUZZ=5000`` tries so many in place of 150.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strange import CAMPAIGN, STRANGE, mutated_bytes, mutated_values

pytestmark = pytest.mark.usefixtures("comfyui")
KEPT = sorted((Path(__file__).parents[1] / "data" / "strange_requests").iterdir())
SAMPLER = {
    "steps": 8, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "cfg": 3.0, "shift": 3.0, "start_at_step": 0,
    "end_at_step": 10_000, "custom": False,
}  # fmt: skip
RULE = {
    "model_type": "flux", "magcache_thresh": 0.24, "retention_ratio": 0.1, "magcache_K": 5, "start_step": 0, "end_step": -1,
    "settings": "as set here", "semantics": "magpolicy", "offload": "device", "speedup": 0.0, "forecast": "auto",
}  # fmt: skip
SPEED = {"speedup": "balanced", "custom_speedup": 2.0, "learn": "as it goes"}
IDENTITY = {"model": "Flux", "config": "ab", "weights": "cd", "repo": "org/name", "part": "", "layout": ""}
SEEN = {"preset": "flux", "identity": IDENTITY, "streams": ["cond", "uncond"], "flux": True, "shift": 1.15}
QUESTIONS = [
    {"node": "MagCache", "inputs": RULE, "sampler": SAMPLER, "panel": "a"},
    {"node": "MagCache", "inputs": {**RULE, "model_type": "auto"}, "sampler": {**SAMPLER, "denoise": 0.5}, "seen": SEEN},
    {"node": "MagPolicySpeedUp", "inputs": SPEED, "sampler": {**SAMPLER, "custom": True}, "seen": SEEN, "panel": "b"},
    {"node": "MagPolicySpeedUp", "inputs": {}, "sampler": {"steps": 6}},
]


def ask(body: bytes) -> None:
    from magpolicy_comfyui.server import _routes

    told(*_routes.preview(body))


def told(status: int, values: dict[str, Any]) -> None:
    assert status in (200, 400), values
    json.dumps(values, allow_nan=False)
    if status == 400:
        assert values["error"].isprintable()
        assert len(values["error"]) < 2_000
    elif values["schedule"] is not None:
        assert values["schedule"]["computed"] > 0


@pytest.fixture(autouse=True)
def nothing_kept(home: Path) -> None:
    """What the user has does not matter."""


@CAMPAIGN
@given(data=st.data(), question=st.sampled_from([json.dumps(question).encode() for question in QUESTIONS]))
def test_values_that_are_changed(data: Any, question: bytes) -> None:
    ask(data.draw(mutated_values(question)))


@CAMPAIGN
@given(data=st.data(), question=st.sampled_from([json.dumps(question).encode() for question in QUESTIONS]))
def test_bytes_that_are_changed(data: Any, question: bytes) -> None:
    ask(data.draw(mutated_bytes(question)))


@CAMPAIGN
@given(
    data=st.data(),
    kind=st.sampled_from(["rule", "speed"]),
    changes=st.dictionaries(st.sampled_from([*RULE, *SPEED]), STRANGE, max_size=3),
)
def test_a_workflow_s_values(data: Any, kind: str, changes: dict[str, Any]) -> None:
    """As ComfyUI gives them to a node, or would: it checks some kinds itself."""
    from magpolicy import MagPolicyError
    from magpolicy_comfyui.nodes import _inputs

    known, make = (RULE, _inputs.settings_of) if kind == "rule" else (SPEED, _inputs.speed_settings_of)
    values = known | {name: value for name, value in changes.items() if name in known}
    with contextlib.suppress(MagPolicyError):
        made = make(**values)
        if made.source is not None or made.speedup is not None:
            schedule = made.place(made.source, 8).simulate()
            assert math.isfinite(schedule.speedup)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_what_once_broke_something(file: Path) -> None:
    ask(file.read_bytes())


def in_pieces(body: bytes) -> Any:
    async def pieces() -> Any:
        for start in range(0, len(body), max(1, len(body) // 3)):
            yield body[start : start + max(1, len(body) // 3)]
            await asyncio.sleep(0.01)

    return pieces()


def test_the_server_answers() -> None:
    """The route itself, asked by a client: whole, in pieces, too long, and what is kept."""
    web = pytest.importorskip("aiohttp.web")
    from aiohttp.test_utils import TestClient, TestServer

    from magpolicy_comfyui.server._routes import MAX_BYTES, ROUTE, add_routes

    good = json.dumps(QUESTIONS[0]).encode()
    kept = [each.read_bytes() for each in KEPT]
    bodies = [good, in_pieces(good), b"", b"[" * 900, b" " * MAX_BYTES, b"x" * (MAX_BYTES + 1), *kept]

    async def ask_all() -> list[tuple[int, Any]]:
        server = SimpleNamespace(routes=web.RouteTableDef())
        assert add_routes(server)
        app = web.Application()
        app.add_routes(server.routes)
        found = []
        async with TestClient(TestServer(app)) as client:
            for body in bodies:
                async with client.post(ROUTE, data=body) as answer:
                    found.append((answer.status, await answer.json()))
        return found

    found = asyncio.run(ask_all())
    for status, values in found:
        told(status, values)
    assert [status for status, _ in found[:2]] == [200, 200]
    assert all(status == 400 for status, _ in found[2:6])
