"""Learning from the runs that are made anyway: what a run shows as it computes is kept, and later runs are planned from it.

A handle has a :class:`Learner`. Each run gets a :class:`Lesson` from it, which says what the run goes by, looks at the
residuals that it computes, and teaches the learner at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, evolve, field

import torch
from magpolicy import AttachRequest, Calibration, Session
from magpolicy.adapter import (
    MeasuredPart,
    ModelIdentity,
    RunConfig,
    always_compute,
    can_teach,
    joined,
    learned,
    lesson_of,
    remember,
)
from magpolicy_torch.residuals._samples import ResidualSamples

IN_FULL = "learn='first': every step computes, and later runs are planned from it"


@define(eq=False)
class Lesson:
    """What one run goes by, and what is learned from it. :class:`HostRun` begins and ends it."""

    __module__ = "magpolicy_torch"

    request: AttachRequest
    """What the run goes by: that of the handle, planned from what is known now."""
    samples: ResidualSamples | None = field(default=None, init=False)
    """Looks at the run's residuals; ``None`` where it can teach nothing new."""
    expert_steps: list[int] = field(factory=list, init=False)
    """Steps at which another model took over."""
    _learner: Learner
    _identity: ModelIdentity
    _known: Calibration | None
    _stop: int = field(default=0, init=False)
    _whole: bool = field(default=True, init=False)

    def begin(self, session: Session, start: int = 0, stop: int | None = None) -> None:
        """The run begins, at position ``start`` of its schedule; ``stop`` is the position after its last evaluation."""
        self._stop = session.steps if stop is None else stop
        self._whole = (start, self._stop) == (0, session.steps)
        full = session.config.given is None and not session.config.schedules
        if can_teach(self._known, whole=self._whole, full=full, levels=session.sigmas, steps=self._stop - start):
            self.samples = ResidualSamples(session.steps)

    def drop(self) -> None:
        """Learn nothing from it: the run was stopped."""
        samples, self.samples = self.samples, None
        if samples is not None:
            samples.clear()

    def end(self, session: Session) -> None:
        """The run is over. It teaches if it went to its end; this waits for the device."""
        samples, trace = self.samples, session.trace
        went_to_its_end = bool(trace) and trace[-1].step >= self._stop - 1
        measured = samples.measured() if samples is not None and went_to_its_end else None
        self.drop()
        if measured is not None:
            self._learner.learn(self._identity, self._taught(measured, session))

    def _taught(self, measured: MeasuredPart, session: Session) -> Calibration:
        levels = session.sigmas or _levels_told(session)
        return lesson_of(
            measured,
            levels or tuple([1 - step / session.steps for step in range(session.steps)]),
            whole=self._whole,
            evaluations=len(session.trace),
            expert_steps=tuple(self.expert_steps),
            provenance={} if levels else {"sigmas": "assumed"},
        )


class Learner:
    """Knows what runs of a handle's model taught, and learns from more.

    Args:
        request: what was asked of the handle.
        identify: says which model it is now: a LoRA that is loaded makes it another one.
        describe: what a calibration notes about how the runs were made (:attr:`magpolicy.Calibration.provenance`).
    """

    __module__ = "magpolicy_torch"

    def __init__(
        self,
        request: AttachRequest,
        identify: Callable[[], ModelIdentity],
        describe: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._request, self._identify, self._describe = request, identify, describe
        self._lock = threading.Lock()
        self._models: dict[ModelIdentity, _Model] = {}

    @classmethod
    def of(
        cls,
        request: AttachRequest,
        identify: Callable[[], ModelIdentity],
        describe: Callable[[], Mapping[str, Any]] = dict,
    ) -> Learner | None:
        """The learner of a handle; ``None`` where nothing is to be learned, or several processes share the work.

        Each process would know other runs, and they have to decide alike.
        """
        return cls(request, identify, describe) if request.learn and not _shared() else None

    def lesson(self, request: AttachRequest | None = None, *, whole: bool = True) -> Lesson:
        """For the next run.

        Args:
            request: what it would go by if nothing were learned, where the host settles that for each run.
            whole: whether it covers the whole noise schedule.
        """
        identity, request = self._identify(), request or self._request
        with self._lock:
            model = self._models.get(identity)
            if model is None:
                model = self._models[identity] = _Model(learned(identity))
            return Lesson(evolve(request, config=model.config_for(request, whole)), self, identity, model.known)

    def learn(self, identity: ModelIdentity, lesson: Calibration) -> None:
        """Keep what a run taught, if it is worth more than what is known."""
        about = {**self._describe(), **lesson.provenance}
        lesson = evolve(lesson, provenance=about)
        with self._lock:
            model = self._models[identity]
            known = learned(identity, lesson.streams)
            if known is None and model.known is not None and set(model.known.streams) == set(lesson.streams):
                known = model.known  # the folder cannot be written
            now = joined(known, lesson)
            if now is not None:
                file = remember(identity, now)
                now = now if file is None else learned(identity, now.streams)  # with its date
            model.now_known(now or known)


@define(eq=False)
class _Model:
    """What is known of one model."""

    known: Calibration | None
    _config: tuple[RunConfig, RunConfig] | None = None
    """What was asked for, and the same as it is planned from what is known."""

    def now_known(self, known: Calibration | None) -> None:
        self.known, self._config = known, None

    def config_for(self, request: AttachRequest, whole: bool) -> RunConfig:
        """What the next run goes by; the same object while nothing new is known, which spares planning again."""
        if request.learn == "first" and can_teach(self.known, whole=whole, full=True, levels=None):
            return always_compute(IN_FULL)
        if self.known is None:
            return request.config
        if self._config is None or self._config[0] is not request.config:
            self._config = request.config, request.config.taught_by(self.known)
        return self._config[1]


def _levels_told(session: Session) -> tuple[float, ...] | None:
    """The noise level of every evaluation as the host told it; ``None`` if it did not."""
    told = {entry.step: entry.sigma for entry in session.trace if entry.sigma is not None}
    return tuple([told[step] for step in range(session.steps)]) if len(told) == session.steps else None


def _shared() -> bool:
    """Whether several processes share the work."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
