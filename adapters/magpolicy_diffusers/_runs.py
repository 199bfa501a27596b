"""Runs, and who says where one begins and ends: a pipeline's call, the user's with block, or the timesteps alone."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch._C import _functorch

from magpolicy import AttachRequest, Session
from magpolicy_diffusers._conditions import Conditions
from magpolicy_diffusers._provenance import guidance
from magpolicy_diffusers._streams import BATCHED, StreamNames
from magpolicy_torch import adapter
from magpolicy_torch.adapter import SchedulerClock, Times, TimestepClock, Why, trains
from torch import Tensor

if TYPE_CHECKING:
    from magpolicy_diffusers._denoiser import DenoiserCall

_GONE = 3
"""A branch that has not come for more steps than this is gone: what is kept of it is freed."""

Timestep = Callable[[], Times | None]
Asked = Callable[[], AttachRequest]


class HostRun(adapter.HostRun):
    """One run, and the names of its streams.

    Args:
        request: what was asked of the handle.
        session: decides. It begins here.
        start: position in the run of the first evaluation.
        noise: the noise level of each evaluation, where the host knows it and the session does not.
        pipe: the pipeline that makes the run; ``None`` in the user's own loop.
        lesson: learns from the run; ``request`` is its own.
    """

    def __init__(
        self,
        request: AttachRequest,
        session: Session,
        start: int = 0,
        noise: Sequence[float] | None = None,
        pipe: Any = None,
        lesson: adapter.Lesson | None = None,
    ) -> None:
        super().__init__(request, session, start, noise, lesson)
        self.streams = StreamNames(pipe)
        self._pipe = pipe
        self._conditions = Conditions()
        self._given: dict[tuple[str, ...], tuple[Sequence[Any], Sequence[int]]] = {}  # by streams, the arguments that told them
        self._last: dict[str, int] = {}  # per stream, the step it was evaluated at
        self._at = -1
        self._moving = False
        self._ahead = False  # of the timesteps, of which some have two evaluations
        self.untold = False
        """Whether neither a scheduler nor a timestep tells the step of a call."""

    def streams_of(self, call: DenoiserCall) -> tuple[str, ...]:
        """The streams of ``call``, as the pipeline names them, or by what they are conditioned on."""
        context = call.denoiser.context.get()
        if context is None or context in BATCHED:
            names = self.streams.conditions_of(call, self.step)
            if self.untold:
                return self._by_latents(names, call)
            if self._pipe is None and self.streams.next_evaluation(names, self.step, call.latents()):
                self._ahead = True
                return names
        else:
            names = (context.removeprefix("pred_"),)
            if self.untold:
                return self._by_latents(names, call)
            if self._pipe is None:  # in the user's own loop, a named stream that comes again is at its next evaluation
                self.streams.named(names, self.step)
                return names
        return self.streams.evaluated(names, step=self.step)

    def _by_latents(self, names: tuple[str, ...], call: DenoiserCall) -> tuple[str, ...]:
        """The streams of a call of which nothing tells the step: one that comes again, with other latents, is at its next."""
        if self.streams.moved(names, call.latents()):
            self._ahead = True
            self.streams.begin_step()
        return self.streams.evaluated(names)

    def look_at(self, call: DenoiserCall, streams: tuple[str, ...]) -> None:
        """Before ``call`` is evaluated: drop what is kept of its streams where they have become other ones, and of those that
        come no more. A call that is given the very tensors of the one before waits for nothing."""
        if self.step != self._at:
            self._at = self.step
            for gone in [stream for stream, last in self._last.items() if self.step - last > _GONE]:
                del self._last[gone]
                self._conditions.forget(gone)
                self.forget([gone])
        for stream in streams:
            self._last[stream] = self.step
        given, args, kwargs = list[Any](), call.args, call.kwargs
        for place, name in call.denoiser.arguments.tell:
            value = args[place] if place < len(args) else kwargs.get(name)
            given += value if isinstance(value, (list, tuple)) else [value]
        versions = [v._version for v in given if isinstance(v, Tensor) and not v.is_inference()]
        before, noted = self._given.get(streams, ((), ()))
        same = versions == noted and len(given) == len(before) and all(map(operator.is_, given, before))
        if same or _functorch.peek_interpreter_stack() is not None:
            return
        self._given[streams] = given, versions
        self._moving |= bool(before)
        if far := self._conditions.look_at(streams, call.condition(), call.latents()):
            self.forget(far)
            for stream in far:
                self.record.problem(Why.ANOTHER_PROMPT.says(stream=repr(stream)))
            if self.lesson is not None:
                self.lesson.drop()

    def settle(self, streams: tuple[str, ...]) -> None:
        """After a call of these streams: note what they were computed on."""
        if self._moving and self.record.laps and not self.record.laps[-1][0]:
            self._conditions.computed(streams)

    def end(self) -> None:
        """End the run, and free its residuals. What is kept of it for reports keeps no pipeline alive, and no prompt."""
        try:
            super().end()
        finally:
            self._pipe = self.streams.pipe = None
            self._given.clear()

    @property
    def complete(self) -> bool:
        """Whether every stream of the step before has been evaluated at the last one."""
        steps = self.session.steps
        if self._ahead and self.streams.complete:
            return all(self.session.step(name) >= steps for name in self.streams.under_way)
        return self.step >= steps - 1 and self.streams.complete


class RunDriver(abc.ABC):
    """Says which run a call belongs to. One for each pipeline call, with block, or user's own loop.

    Args:
        asked: what was asked of runs that begin now and here.
        warn: tells the user.
        learner: learns from runs.
    """

    def __init__(self, asked: Asked, warn: Callable[..., None], learner: adapter.Learner | None = None) -> None:
        self.asked, self.warn, self.learner = asked, warn, learner
        self._request: AttachRequest | None = None
        self._lesson: adapter.Lesson | None = None
        self.runs: list[HostRun] = []
        self.run: HostRun | None = None
        self.problem = ""
        """Why calls here are not part of a run."""
        self.called = False
        """Whether a model was called."""
        self._aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, calls of the model are no steps of a run: a callback's, an observer's. They compute."""
        before = self._aside
        try:  # either of the two ends it: an interruption of one leaves the other
            try:
                self._aside = True
                yield
            finally:
                self._aside = before
        finally:
            self._aside = before

    def call(self, call: DenoiserCall, streams: Sequence[str] | None) -> Any:
        """Make ``call`` as a part of the run it belongs to; a call of no run computes.

        Args:
            call: the call that was to be made.
            streams: its streams, where the user named them.
        """
        self.called = True
        if self._aside:
            return call.compute()
        try:
            return self._as_part(call, streams)
        except BaseException:
            self.failed()
            raise

    def _as_part(self, call: DenoiserCall, streams: Sequence[str] | None) -> Any:
        with self.aside():
            run, denoiser = self.enter(call.timestep), call.denoiser
        if run is None:
            if self.problem:
                self.warn(f"{denoiser.name} was called outside a run, so nothing is skipped: {self.problem}", once=True)
            return call.compute()
        if streams:
            run.streams.named(streams, run.step)
        streams = tuple(streams or run.streams_of(call))
        run.look_at(call, streams)
        if run.moments is not None:
            run.moments.note(latents=call.latents())
        must_compute = Why.TOO_MANY.says() if run.streams.too_many else ""
        before = bool(run.record.past_end)
        if run.session.active and run.step < run.session.steps:
            result = run.evaluate(denoiser.model, streams, call.original, call.args, call.kwargs, must_compute=must_compute)
        else:  # the loop goes on after the run's last step
            run.record.past_end.extend(streams)
            result = call.compute()
        if run.record.past_end and not before:
            self.warn(run.too_long())
        run.settle(streams)
        with self.aside():
            self.left()
        return result

    @abc.abstractmethod
    def enter(self, timestep: Timestep) -> HostRun | None:
        """The run of the call to come, gone to its step; ``None``: it computes, and is part of no run."""

    def left(self) -> None:  # noqa: B027  (for some there is nothing to do)
        """The call is through."""

    def failed(self) -> None:
        """The call raised, or the run was left by an exception."""
        if self.run is not None:
            self.run.stop()

    def close(self) -> None:
        """Nothing more to come."""
        run, self.run = self.run, None
        if run is not None:
            with self.aside():
                run.end()
            if self.learner is not None:
                run.note(self.learner.provenance)
            if run.in_vain:
                self.warn(run.in_vain)

    def _next_request(self, steps: int | None, start: int = 0) -> AttachRequest:
        """What the next run goes by, with what was learned until now.

        Args:
            steps: evaluations of its schedule per stream, where they are known.
            start: position in its schedule at which it begins.
        """
        self.close()
        request = self.asked()
        learner = self.learner if request.learn else None
        self._lesson = None if learner is None else learner.lesson(request, whole=start == 0, steps=steps)
        self._request = request if self._lesson is None else self._lesson.request
        return self._request

    def _begin(self, session: Session, start: int = 0, noise: Sequence[float] | None = None, pipe: Any = None) -> HostRun:
        """Begin the run of a session that was made from :meth:`_next_request`."""
        assert self._request is not None
        self.run = HostRun(self._request, session, start, noise, pipe, self._lesson)
        self.runs.append(self.run)
        return self.run


class OwnLoop(RunDriver):
    """The user's own loop around a model: the timestep tells the step, and where a run ends."""

    def __init__(
        self,
        asked: Asked,
        warn: Callable[..., None],
        pipe: Any = None,
        began: Callable[[RunDriver], None] = lambda driver: None,
        learner: adapter.Learner | None = None,
    ) -> None:
        super().__init__(asked, warn, learner)
        self._pipe, self._began = pipe, began
        self._clock = TimestepClock()
        self._start, self._rises = 0, False
        self.problem = Why.NO_LENGTH.says()

    def enter(self, timestep: Timestep) -> HostRun | None:
        if self.run is None and self.asked().steps is None:
            return None
        moved = self._clock.tell(timestep())
        if moved == "untold":
            self.problem = Why.NO_TIMESTEP.says()
            return None
        last = self.runs[-1] if self.runs else None
        if moved != "back" and last is not None and self._clock.count >= last.session.steps > 1:
            last.step = self._clock.count  # the loop goes on after the last step: it is longer than was said
            return last
        if moved == "next" and self._clock.rising is not self._rises:
            self._rises = bool(self._clock.rising)
            if 0 < self._start == self._clock.count - 1:  # what began midway counts from the other end, its second step shows
                return self._anew(self._rises)
        if self.run is None or moved == "back":
            return self._anew()
        if moved == "next":
            self.run.go_to(self._clock.count)
        return self.run

    def call(self, call: DenoiserCall, streams: Sequence[str] | None) -> Any:
        if trains(call.denoiser.module):
            self.warn(Why.TRAINS.says(model=call.denoiser.name), once=True)
            return call.compute()
        return super().call(call, streams)

    def _anew(self, rising: bool | None = None) -> HostRun:
        """Begin a run where the clock is: at the beginning, or midway (image to image)."""
        steps = self.asked().steps
        assert steps is not None
        self._clock.rising = rising
        self._start = self._clock.count = self._clock.place(steps, rising=self._rises)
        del self.runs[:-1]
        self._began(self)
        return self._begin(self._next_request(steps, self._start).session(), self._start, pipe=self._pipe)

    def left(self) -> None:
        run = self.run
        if run is None:
            return
        if self._clock.count == self._start and (again := run.streams.repeats):
            # Two streams that nothing tells apart; or a run was broken off at its first step, and this one is another. Which of
            # them, the next step will show: until then there is nothing to reuse.
            run.forget(again)
        if run.complete:
            self.close()

    def failed(self) -> None:
        super().failed()
        self.close()


class GivenRun(RunDriver):
    """A with block of the user's."""

    def __init__(
        self,
        asked: Asked,
        warn: Callable[..., None],
        steps: int | None,
        sigmas: Sequence[float] | None,
        start: int,
        learner: adapter.Learner | None = None,
    ) -> None:
        super().__init__(asked, warn, learner)
        self._clock = TimestepClock(start)
        self._told = False
        session = self._next_request(asked().length(steps, sigmas), start).session(steps, sigmas)
        self._begin(session, start, session.sigmas)

    def go_to(self, step: int) -> None:
        """As :meth:`Handle.go_to`: from now on no timestep is read."""
        assert self.run is not None
        self.run.go_to(self.run.check_step(step))
        self._told = True

    def enter(self, timestep: Timestep) -> HostRun | None:
        assert self.run is not None
        if self._told:
            return self.run
        if self._clock.tell(timestep()) == "untold":
            self.run.streams.counted = False
            self.run.streams.begin_step()  # each call is its stream's next
        self.run.go_to(self._clock.count)
        return self.run


class PipelineCall(RunDriver):
    """One call of a pipeline: its scheduler tells the step. A call may hold several runs (sections, stages)."""

    def __init__(
        self,
        asked: Asked,
        warn: Callable[..., None],
        pipe: Any,
        boundary: float | None,
        learner: adapter.Learner | None = None,
    ) -> None:
        super().__init__(asked, warn, learner)
        self._pipe = pipe
        self._clock = SchedulerClock(pipe)
        self._boundary = boundary
        self._finished = False
        self._own = OwnLoop(asked, warn, pipe, learner=learner)

    def enter(self, timestep: Timestep) -> HostRun | None:
        new = self._clock.tell(timestep)
        if new is None:
            self.problem = Why.NO_LIST.says(then=self._own.problem)
            run = self._own.enter(timestep)
            self.runs += [run] if run is not None and run not in self.runs else []
            return run
        if new or (self.run is None and not self._finished):
            assert self._clock.levels is not None
            self._finished = False
            levels, start = self._clock.levels, self._clock.index
            asked = self._next_request(len(levels.timesteps), start)
            session = asked.session_over(levels.span(self._boundary), guidance=guidance(self._pipe))
            self._begin(session, start, levels.noise(), self._pipe)
        elif self.run is not None:
            self.run.step = self._clock.index
        if self.run is not None:
            self.run.untold = not self._clock.told
            self.run.streams.counted = self._clock.told
        return self.run

    def left(self) -> None:
        self._own.left()
        if self.run is not None and self.run.complete:
            self.close()
            self._finished = True

    def failed(self) -> None:
        super().failed()
        self._own.failed()

    def close(self) -> None:
        super().close()
        self._own.close()
