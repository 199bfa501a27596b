"""Runs, and who says where one begins and ends: a pipeline's call, the user's with block, or the timesteps alone."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from magpolicy import ArgumentError, AttachRequest, Calibration, Curve, Schedule, Session
from magpolicy_diffusers._arguments import Times
from magpolicy_diffusers._noise_levels import Levels, SchedulerClock, TimestepClock
from magpolicy_diffusers._provenance import guidance
from magpolicy_diffusers._streams import StreamNames
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.host._handle import check_step
from magpolicy_torch.host._report import Record, Report
from magpolicy_torch.residuals._moments import Moments, calibrated, curve_of, measured, moments_for
from magpolicy_torch.residuals._store import ResidualStore

if TYPE_CHECKING:
    from magpolicy_diffusers._denoiser import Denoiser
    from magpolicy_torch.evaluation._interceptor import HostCall

Timestep = Callable[[], Times | None]


class HostRun:
    """One run: one session, and one stack's run for each denoiser that takes part (two experts share a session)."""

    def __init__(self, request: AttachRequest, session: Session, start: int = 0, noise: Sequence[float] | None = None) -> None:
        self.request, self.session, self.noise = request, session, noise
        self.record = Record()
        self.branches = StreamNames()
        self.step = start
        self.scope = request.scope
        self._runs: dict[Denoiser, Run] = {}
        self.moments = moments_for(request, session.steps)
        self._before: frozenset[str] = frozenset()
        session.begin(start)

    def go_to(self, step: int) -> None:
        """The calls to come are those of ``step``."""
        if step != self.step:
            self.step, self._before = step, self.branches.used
            self.branches.begin_step()

    def evaluate(
        self, denoiser: Denoiser, streams: Sequence[str], original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call of ``denoiser``, at the step gone to."""
        run = self._run_of(denoiser)
        if self.branches.too_many or denoiser.must_compute():
            run.unsupported.update(streams)
        # A named stream that comes again without a step in between is at its next evaluation.
        step = max(self.step, *map(self.session.step, streams))
        sigma = None if self.noise is None or step >= len(self.noise) else self.noise[step]
        return denoiser.model.evaluate(run, streams, original, args, kwargs, step=step, sigma=sigma)

    def forget(self, streams: Sequence[str]) -> None:
        """Reuse nothing that these streams have computed so far."""
        for run in self._runs.values():
            for stream in streams:
                run.store.drop(stream)

    @property
    def complete(self) -> bool:
        """Whether every branch of the step before has been evaluated at the last one."""
        return self.step >= self.session.steps - 1 and bool(self._before) and self.branches.used >= self._before

    def end(self) -> None:
        """Over, in good order or not: nothing is held any more."""
        self.session.end()

    @property
    def residuals_held(self) -> int:
        return sum(run.store.count for run in self._runs.values())

    @property
    def report(self) -> Report:
        """As :attr:`Handle.report`."""
        return Report.of(self.session, self.record, self.scope)

    @property
    def curve(self) -> Curve:
        """As :attr:`Handle.curve`."""
        return curve_of(self._measured("curve"), self.session)

    def calibration(self, provenance: Mapping[str, Any]) -> Calibration:
        """As :attr:`Handle.calibration`."""
        return calibrated(self._measured("calibration"), self.session, {**provenance, "scope": self.scope})

    def _measured(self, what: str) -> Moments:
        return measured(what, self.moments, any(run.unsupported for run in self._runs.values()))

    def _run_of(self, denoiser: Denoiser) -> Run:
        if denoiser not in self._runs:
            for other in self._runs.values():
                other.free()  # the other expert's residuals say nothing here
            store = ResidualStore(self.request.offload, self.request.storage_dtype)
            run = Run(denoiser.stack, self.session, store, self.moments, denoiser.channel_dim, self.record)
            self._runs[denoiser] = run
            self.scope = denoiser.scope
        return self._runs[denoiser]


class RunDriver(abc.ABC):
    """Says which loop a call belongs to. One for each pipeline call, with block, or user's own loop."""

    def __init__(self, request: AttachRequest) -> None:
        self.request = request
        self.loops: list[HostRun] = []
        self.loop: HostRun | None = None
        self.problem = ""
        """Why calls here are not part of a run."""

    @abc.abstractmethod
    def enter(self, timestep: Timestep) -> HostRun | None:
        """The loop of the call to come, gone to its step; ``None``: it computes, and is part of no run."""

    def left(self) -> None:  # noqa: B027  (for some there is nothing to do)
        """The call is through."""

    def failed(self) -> None:
        """The call raised, or the run was left by an exception."""
        if self.loop is not None and self.loop.moments is not None:
            self.loop.moments.stopped = True

    def close(self) -> None:
        """Nothing more to come."""
        loop, self.loop = self.loop, None
        if loop is not None:
            loop.end()

    def _begin(self, session: Session, start: int = 0, noise: Sequence[float] | None = None) -> HostRun:
        self.close()
        self.loop = HostRun(self.request, session, start, noise)
        self.loops.append(self.loop)
        return self.loop


class OwnLoop(RunDriver):
    """The user's own loop around a model: the timestep tells the step, and where a run ends."""

    def __init__(self, request: AttachRequest) -> None:
        super().__init__(request)
        self._clock = TimestepClock()
        self.problem = "nothing says how long the run is: give attach(..., steps=28), or use 'with handle.run(steps=28):'"

    def enter(self, timestep: Timestep) -> HostRun | None:
        if self.request.steps is None:
            return None
        moved = self._clock.tell(timestep())
        if moved == "untold":
            self.problem = "it is given no timestep, so nothing tells the step; use 'with handle.run(steps=28):'"
            return None
        if self.loop is None or moved == "back" or self._clock.count >= self.loop.session.steps:
            self._clock.count = 0
            self._clock.rising = None
            del self.loops[:-1]
            return self._begin(self.request.session())
        if moved == "next":
            self.loop.go_to(self._clock.count)
        return self.loop

    def left(self) -> None:
        loop = self.loop
        if loop is None:
            return
        if self._clock.count == 0 and (again := loop.branches.repeated):
            # Two streams that nothing tells apart; or a run was broken off at its first step, and this one is another. Which of
            # them, the next step will show: until then there is nothing to reuse.
            loop.forget(again)
        if loop.complete:
            self.close()

    def failed(self) -> None:
        super().failed()
        self.close()


class GivenRun(RunDriver):
    """A with block of the user's."""

    def __init__(self, request: AttachRequest, steps: int | None, sigmas: Sequence[float] | None, start: int) -> None:
        super().__init__(request)
        self._clock = TimestepClock(start)
        self._told = False
        session = request.session(steps, sigmas)
        self._begin(session, start, session.sigmas)

    def go_to(self, step: int) -> None:
        """As :meth:`Handle.go_to`: from now on no timestep is read."""
        assert self.loop is not None
        self.loop.go_to(check_step(step, self.loop.session.steps, self.loop.step))
        self._told = True

    def enter(self, timestep: Timestep) -> HostRun | None:
        assert self.loop is not None
        if self._told:
            return self.loop
        if self._clock.tell(timestep()) == "untold":
            self.loop.branches.begin_step()  # each call is its stream's next
        self.loop.go_to(min(self._clock.count, self.loop.session.steps - 1))
        return self.loop


class PipelineCall(RunDriver):
    """One call of a pipeline: its scheduler tells the step. A call may hold several runs (sections, stages)."""

    def __init__(self, request: AttachRequest, pipe: Any, boundary: float | None) -> None:
        super().__init__(request)
        self._pipe = pipe
        self._clock = SchedulerClock(pipe)
        self._boundary = boundary
        self._finished = False
        self._own = OwnLoop(request)

    def enter(self, timestep: Timestep) -> HostRun | None:
        new = self._clock.tell(timestep)
        if new is None:
            self.problem = "its scheduler lists no timesteps, and " + self._own.problem
            loop = self._own.enter(timestep)
            self.loops += [loop] if loop is not None and loop not in self.loops else []
            return loop
        if new or (self.loop is None and not self._finished):
            assert self._clock.levels is not None
            self._finished = False
            session = _session(self.request, self._clock.levels, self._boundary, guidance(self._pipe))
            self._begin(session, self._clock.index, self._clock.levels.noise())
        elif self.loop is not None:
            self.loop.go_to(self._clock.index)
        return self.loop

    def left(self) -> None:
        self._own.left()
        if self.loop is not None and self.loop.complete:
            self.close()
            self._finished = True

    def failed(self) -> None:
        super().failed()
        self._own.failed()

    def close(self) -> None:
        super().close()
        self._own.close()


def _session(request: AttachRequest, levels: Levels, boundary: float | None, scale: float | None) -> Session:
    """A session for what a scheduler is about to run."""
    given, steps = request.config.given, len(levels.timesteps)
    if isinstance(given, Schedule) and given.steps != steps:
        raise ArgumentError(
            f"num_inference_steps makes {steps} evaluations, but the schedule has {given.steps}; attach with a "
            f"schedule of {steps} steps"
        )
    return request.session_over(levels.span(boundary), guidance=scale)
