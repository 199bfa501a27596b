"""Previews take their turns: planning takes seconds and memory, and a user who turns a knob asks a dozen times meanwhile.

They have a thread of their own, so that neither the server's answers nor ComfyUI's own work in threads waits for them. A panel
has one question in here: a newer one takes the place of the older, also of one that is being planned, which is given up then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from attrs import define, field

from magpolicy.adapter import PlanningStopped

MOST = 32
"""Questions that may wait, of as many panels."""
_NEWER = "given up: a newer question of this panel came"
_LEFT = "given up: nobody waits for the answer"

Work = Callable[[Callable[[], bool]], Any]
"""Makes an answer; the argument says whether it is given up."""


class GivenUp(Exception):
    """There is no answer, and nobody wants it any more."""


class TooMany(Exception):
    """Too many wait already."""


@define(eq=False)
class _Question:
    work: Work
    left: Callable[[], bool]
    answer: asyncio.Future[Any]
    reason: str = ""
    """Why it is given up; empty while it is not."""

    def given_up(self) -> bool:
        if not self.reason and self.left():
            self.reason = _LEFT
        return bool(self.reason)

    def give_up(self, reason: str) -> None:
        """Answer it with that; whoever is at work on it sees it."""
        self.reason = self.reason or reason
        if not self.answer.done():
            self.answer.set_exception(GivenUp(self.reason))


@define(eq=False)
class OneAtATime:
    """The questions of all panels. All but the work itself is done in the server's own thread."""

    most: int = MOST
    begun: int = 0
    """Questions whose answer was begun."""
    dropped: int = 0
    """Questions that were given up before that."""
    _waiting: dict[Hashable, _Question] = field(factory=dict, init=False)
    _now: tuple[Hashable, _Question] | None = field(default=None, init=False)
    _turns: asyncio.Task[None] | None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(
        factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="magpolicy-preview"), init=False
    )

    async def answer(self, panel: Hashable, work: Work, left: Callable[[], bool] = lambda: False) -> Any:
        """What ``work`` gives, once it is its turn.

        Args:
            panel: who asks; its earlier question is given up.
            work: see :data:`Work`.
            left: whether whoever asked has gone away.

        Raises:
            GivenUp: a newer question of the panel came, or whoever asked has left.
            TooMany: so many panels wait that this one is not taken.
        """
        before = self._waiting.pop(panel, None)  # the newest goes to the end
        if before is not None:
            self.dropped += 1
            before.give_up(_NEWER)
        if self._now is not None and self._now[0] == panel:
            self._now[1].give_up(_NEWER)
        if len(self._waiting) >= self.most:
            raise TooMany(f"{len(self._waiting)} previews wait already; ask again in a moment")
        question = _Question(work, left, asyncio.get_running_loop().create_future())
        self._waiting[panel] = question
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await question.answer

    async def _take_turns(self) -> None:
        while self._waiting:
            panel = next(iter(self._waiting))
            question = self._waiting.pop(panel)
            if question.given_up():
                self.dropped += 1
                question.give_up(_LEFT)
                continue
            self._now, self.begun = (panel, question), self.begun + 1
            try:
                made = await asyncio.get_running_loop().run_in_executor(self._thread, question.work, question.given_up)
            except PlanningStopped:
                question.give_up(_LEFT)
            except Exception as error:
                if not question.answer.done():
                    question.answer.set_exception(error)
            else:
                if not question.answer.done():
                    question.answer.set_result(made)
            finally:
                self._now = None
