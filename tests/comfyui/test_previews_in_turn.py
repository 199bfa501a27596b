"""Previews take turns: counted, not timed. The server is aiohttp's, the route is the pack's, the plans are the library's."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy.adapter import PlanningStopped, stop_planning_when

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("torch")
SAMPLER = {"sampler_name": "euler", "scheduler": "simple"}


@define
class Works:
    """Work that ends when the test says so, and notes what was begun and how many were at work at once."""

    begun: list[Any] = field(factory=list)
    at_once: int = 0
    most_at_once: int = 0
    go_on: threading.Event = field(factory=threading.Event)
    given_up: list[Any] = field(factory=list)

    def make(self, name: Any) -> Callable[[Callable[[], bool]], Any]:
        def work(given_up: Callable[[], bool]) -> Any:
            self.begun.append(name)
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            try:
                while not self.go_on.wait(0.001):
                    if given_up():
                        self.given_up.append(name)
                        raise PlanningStopped("stopped")
                return name
            finally:
                self.at_once -= 1

        return work


def together(act: Callable[[Any, Works], Awaitable[None]], **how: Any) -> tuple[Any, Works]:
    from magpolicy_comfyui.server._one_at_a_time import OneAtATime

    previews, works = OneAtATime(**how), Works()
    asyncio.run(asyncio.wait_for(act(previews, works), 60))
    return previews, works


async def _settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_of_one_panel_the_newest_question_is_answered() -> None:
    from magpolicy_comfyui.server._one_at_a_time import GivenUp

    async def act(previews: Any, works: Works) -> None:
        asked = []
        for number in range(12):
            asked.append(asyncio.create_task(previews.answer("panel", works.make(number))))
            await _settled()
        works.go_on.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[-1] == 11
        assert all(isinstance(answer, GivenUp) and "newer question" in str(answer) for answer in answers[:-1])

    previews, works = together(act)
    assert works.most_at_once == 1
    assert works.begun[-1] == 11
    assert works.given_up == works.begun[:-1]  # each was given up while it was planned
    assert previews.begun + previews.dropped == 12


def test_of_questions_at_once_only_the_first_and_the_last_are_begun() -> None:
    async def act(previews: Any, works: Works) -> None:
        first = asyncio.create_task(previews.answer("panel", works.make(0)))
        await _settled()
        rest = [asyncio.create_task(previews.answer("panel", works.make(number))) for number in range(1, 12)]
        works.go_on.set()
        await asyncio.gather(first, *rest, return_exceptions=True)

    previews, works = together(act)
    assert works.begun == [0, 11]
    assert (previews.begun, previews.dropped) == (2, 10)


def test_panels_wait_for_each_other_in_their_order_up_to_a_number() -> None:
    from magpolicy_comfyui.server._one_at_a_time import TooMany

    async def act(previews: Any, works: Works) -> None:
        asked = []
        for panel in range(6):  # one at work, three that wait
            asked.append(asyncio.create_task(previews.answer(panel, works.make(panel))))
            await _settled()
        assert works.begun == [0]
        works.go_on.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[:4] == [0, 1, 2, 3]
        assert all(isinstance(answer, TooMany) and "3 previews wait already" in str(answer) for answer in answers[4:])
        assert await previews.answer(6, works.make(6)) == 6

    _, works = together(act, most=3)
    assert works.begun == [0, 1, 2, 3, 6]
    assert works.most_at_once == 1


def test_what_fails_is_told_and_the_next_has_its_turn() -> None:
    async def act(previews: Any, works: Works) -> None:
        def fails(_: Any) -> Any:
            raise ValueError("once")

        works.go_on.set()
        answers = await asyncio.gather(
            previews.answer("a", fails), previews.answer("b", works.make("b")), return_exceptions=True
        )
        assert str(answers[0]) == "once"
        assert answers[1] == "b"

    together(act)


@settings(max_examples=40, deadline=None)
@given(panels=st.lists(st.integers(0, 3), min_size=1, max_size=12), left=st.sets(st.integers(0, 11)))
def test_every_question_has_one_answer_and_the_newest_of_each_panel_its_own(panels: list[int], left: set[int]) -> None:
    async def act(previews: Any, works: Works) -> None:
        works.go_on.set()
        asked = [
            asyncio.create_task(previews.answer(panel, works.make(number), lambda number=number: number in left))
            for number, panel in enumerate(panels)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for panel in set(panels):
            newest = max(number for number, each in enumerate(panels) if each == panel)
            assert (answers[newest] == newest) == (newest not in left)
        assert not left & set(works.begun)

    previews, works = together(act)
    assert previews.begun + previews.dropped == len(panels)
    assert len(works.begun) == previews.begun
    assert works.most_at_once <= 1


@pytest.mark.parametrize("steps", [28, 100, 300])
def test_a_plan_that_nobody_waits_for_stops(steps: int) -> None:
    looks = 0

    def asked() -> bool:
        nonlocal looks
        looks += 1
        return looks > 3

    with pytest.raises(PlanningStopped), stop_planning_when(asked):
        magpolicy.plan("flux", steps=steps, speedup=2.0)
    assert looks == 4
    assert magpolicy.plan("flux", steps=28, speedup=2.0).computed == 14  # nothing of it stays


# On a server


@asynccontextmanager
async def served() -> Any:
    """A server of aiohttp with the pack's route, and a session of a browser's."""
    from aiohttp import web
    from aiohttp.test_utils import TestServer

    from magpolicy_comfyui.server._routes import add_routes

    stand_in = SimpleNamespace(routes=web.RouteTableDef())  # of ComfyUI's PromptServer, which has this of aiohttp too
    assert add_routes(stand_in)
    app = web.Application()
    app.add_routes(stand_in.routes)
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/")) as session:
        yield session, stand_in.magpolicy_previews


def question(panel: str | None, steps: int, **inputs: Any) -> bytes:
    known = {} if panel is None else {"panel": panel}
    asked = {"node": "MagPolicySpeedUp", "inputs": {"speedup": "fast"} | inputs, "sampler": SAMPLER | {"steps": steps}}
    return json.dumps(known | asked).encode()


async def _post(session: Any, body: bytes) -> tuple[int, Any]:
    async with session.post("/magpolicy/simulate", data=body) as answer:
        return answer.status, await answer.json()


def test_a_dozen_previews_of_a_panel_make_few_plans(comfyui: Path) -> None:
    """A user turns the number of steps up from 100, and waits for none of the answers on the way."""

    async def act() -> None:
        async with served() as (session, previews):
            asked = []
            for steps in range(100, 112):
                asked.append(asyncio.create_task(_post(session, question("panel", steps))))
                await asyncio.sleep(0.005)
            answers = await asyncio.gather(*asked)
            status, newest = answers[-1]
            assert (status, newest["schedule"]["first_step"], len(newest["schedule"]["mask"])) == (200, 0, 111)
            for status, said in answers[:-1]:
                assert status in (200, 409)
                assert status == 200 or "newer question" in said["error"]
            assert previews.begun + previews.dropped == 12
            assert [status for status, _ in answers].count(200) <= previews.begun

    asyncio.run(asyncio.wait_for(act(), 120))


def test_questions_of_a_browser_that_left_are_not_planned(comfyui: Path) -> None:
    async def act() -> None:
        async with served() as (session, previews):
            at_work = asyncio.create_task(_post(session, question("other", 150)))
            while previews.begun == 0:
                await asyncio.sleep(0.001)
            abandoned = [asyncio.create_task(_post(session, question(f"panel {n}", 100))) for n in range(12)]
            while len(previews._waiting) < 12:
                await asyncio.sleep(0.001)
            for each in abandoned:
                each.cancel()
            await asyncio.gather(*abandoned, return_exceptions=True)
            assert (await at_work)[0] == 200
            assert (await _post(session, question("another", 20)))[0] == 200
            assert (previews.begun, previews.dropped) == (2, 12)

    asyncio.run(asyncio.wait_for(act(), 120))


def test_questions_without_a_panel_are_all_answered(comfyui: Path) -> None:
    async def act() -> None:
        async with served() as (session, previews):
            answers = await asyncio.gather(*(_post(session, question(None, steps)) for steps in range(20, 26)))
            assert [status for status, _ in answers] == [200] * 6
            assert (await _post(session, b"nothing"))[0] == 400
            status, said = await _post(session, question("panel", 20, custom_speedup="x"))
            assert status == 400
            assert "custom_speedup='x'" in said["error"]
            assert previews.begun == 7

    asyncio.run(asyncio.wait_for(act(), 120))
