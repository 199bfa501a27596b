"""One call of a pipeline's forward: its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field

from magpolicy import ArgumentError, AttachRequest, Schedule
from magpolicy_torch.adapter import HostCall, HostModel, HostRun, Learner, StreamNamer, Times, Why
from magpolicy_vllm_omni._arguments import fills_cache
from magpolicy_vllm_omni._branches import Branches
from magpolicy_vllm_omni._clock import PipelineClock


@define(eq=False)
class PipelineRun:
    """One run, and the names of its streams."""

    host: HostRun
    names: StreamNamer = field(factory=StreamNamer)
    _step: int = -1
    _calls: int = 0

    def streams(self, branches: Branches | None, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The stream of a call: as guidance tells it, else by its place among the calls of the step."""
        if self.host.step != self._step:
            self._step, self._calls = self.host.step, 0
        told = None if branches is None else branches.name_of(args, kwargs)
        name = told or ("cond" if self._calls == 0 else "uncond")
        self._calls += 1
        return self.names.evaluated((name,), step=self.host.step)

    @property
    def complete(self) -> bool:
        """Whether every stream of the step before has been evaluated at the last one."""
        return self.host.step >= self.host.session.steps - 1 and self.names.complete


class ForwardCall:
    """One call of the pipeline's forward, which may make several runs (stages).

    Args:
        clock: tells the step, and where a run begins.
        request: what its runs go by.
        boundary: where the second of two experts takes over, as a share of pure noise.
        learner: learns from its runs; ``None``: nobody does.
        warn: tells whoever runs the engine.
    """

    def __init__(
        self,
        clock: PipelineClock,
        request: AttachRequest,
        boundary: float | None,
        learner: Learner | None,
        warn: Callable[[str], None],
    ) -> None:
        self.runs: list[HostRun] = []
        self._request, self._boundary, self._learner, self._warn = request, boundary, learner, warn
        self._clock = clock
        self._run: PipelineRun | None = None
        self._finished = False

    def call(
        self,
        model: HostModel,
        branches: Branches | None,
        times: Callable[[], Times | None],
        original: HostCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make one call of a model, as a part of the run that it belongs to; without one it computes."""
        run = None if fills_cache(kwargs) else self._enter(branches, times)
        if run is None:
            return original(*args, **kwargs)
        streams = run.streams(branches, args, kwargs)
        must_compute = Why.TOO_MANY.says() if run.names.too_many else ""
        try:
            result = run.host.evaluate(model, streams, original, args, kwargs, must_compute=must_compute)
        except BaseException:
            self.failed()
            raise
        if run.complete:
            self.close()
            self._finished = True
        return result

    def _enter(self, branches: Branches | None, times: Callable[[], Times | None]) -> PipelineRun | None:
        new = self._clock.tell(times)
        if new is None:
            self._warn(f"every step computes: {self._clock.problem}")
            return None
        if new or (self._run is None and not self._finished):
            self.close()
            self._finished = False
            self._run = PipelineRun(self._begin(self._clock.index, branches))
            self.runs.append(self._run.host)
        elif self._run is not None:
            self._run.host.step = self._clock.index
        return self._run

    def _begin(self, start: int, branches: Branches | None) -> HostRun:
        request, steps = self._request, self._clock.steps
        given = request.config.given
        if isinstance(given, Schedule) and given.steps != steps:
            raise ArgumentError(
                f"num_inference_steps makes {steps} evaluations, but the schedule has {given.steps}; ask for those"
            )
        learner = self._learner if request.learn else None
        lesson = None if learner is None else learner.lesson(request, steps=steps, whole=start == 0)
        request = request if lesson is None else lesson.request
        scale = None if branches is None else branches.scale
        session = request.session_over(self._clock.span(self._boundary), guidance=scale)
        return HostRun(request, session, start, self._clock.noise(), lesson)

    def failed(self) -> None:
        """The model raised, or an exception ended the call."""
        if self._run is not None:
            self._run.host.stop()

    def close(self) -> None:
        """Nothing more of this run is to come."""
        run, self._run = self._run, None
        if run is not None:
            run.host.end()
            if run.host.in_vain:
                self._warn(run.host.in_vain)
