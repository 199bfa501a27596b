"""Learning from the runs that are made anyway: what a run shows as it computes is kept, and later runs are planned from it.

A handle has a :class:`Learner`. Each run gets a :class:`Lesson` from it, which says what the run goes by, looks at the
residuals that it computes, and teaches the learner at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from attrs import define, evolve, field

from magpolicy import ArgumentError, AttachRequest, Calibration, Session
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
    should_compute_all,
)
from magpolicy_torch.ranks._find import given, group_of, several_processes
from magpolicy_torch.ranks._group import Occasion, RankGroup
from magpolicy_torch.residuals._samples import ResidualSamples

_CONFIGS_KEPT = 64
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
    _all: bool = True
    """Whether the host took it for a run of the whole schedule: one that ends early does not show it by its own steps."""
    _deaf: bool = field(default=False, kw_only=True)
    """Whether it teaches nothing in any case."""
    _stop: int = field(default=0, init=False)
    _whole: bool = field(default=True, init=False)
    _stopped: bool = field(default=False, init=False)

    def begin(self, session: Session, start: int = 0, stop: int | None = None) -> None:
        """The run begins, at position ``start`` of its schedule; ``stop`` is the position after its last evaluation."""
        self._stop = session.steps if stop is None else stop
        self._whole = self._all and (start, self._stop) == (0, session.steps)
        full = _in_full(session.config) or _plans_none(session)
        if self._deaf:
            return
        if can_teach(self._known, whole=self._whole, full=full, levels=session.sigmas, steps=self._stop - start):
            self.samples = ResidualSamples(session.steps)

    def drop(self) -> None:
        """Learn nothing from it: the run was stopped."""
        self._stopped = True
        self._free()

    def _free(self) -> None:
        samples, self.samples = self.samples, None
        if samples is not None:
            samples.clear()

    def end(self, session: Session, group: RankGroup | None = None) -> None:
        """The run is over. It teaches if it went to its end; this waits for the device, and for the ranks of ``group``."""
        samples, trace = self.samples, session.trace
        went_to_its_end = bool(trace) and trace[-1].step >= self._stop - 1 and not self._stopped
        measured = samples.measured(group) if samples is not None and went_to_its_end else None
        self._free()
        if went_to_its_end and not self._deaf and _in_full(session.config):
            self._learner.made_in_full(self._identity, self._all, session.steps)
        if measured is None:
            return
        try:
            taught = self._taught(measured, session)
        except (ArgumentError, np.linalg.LinAlgError):  # levels that no schedule has: the run is through all the same
            return
        self._learner.learn(self._identity, taught, group)

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
        streams: those of its runs, where the host knows them; what runs of other streams taught serves until these have.
    """

    __module__ = "magpolicy_torch"

    def __init__(
        self,
        request: AttachRequest,
        identify: Callable[[], ModelIdentity],
        describe: Callable[[], Mapping[str, Any]] = dict,
        streams: Iterable[str] | None = None,
    ) -> None:
        self._request, self._identify, self.provenance = request, identify, describe
        self._streams = None if streams is None else tuple(streams)
        self._lock = threading.Lock()
        self._models: dict[ModelIdentity, _Model] = {}

    @classmethod
    def of(
        cls,
        request: AttachRequest,
        identify: Callable[[], ModelIdentity],
        describe: Callable[[], Mapping[str, Any]] = dict,
        streams: Iterable[str] | None = None,
    ) -> Learner | None:
        """The learner of a handle; ``None`` where nothing is to be learned."""
        return cls(request, identify, describe, streams) if request.learn else None

    def lesson(self, request: AttachRequest | None = None, *, steps: int | None = None, whole: bool = True) -> Lesson:
        """For the next run.

        Args:
            request: what it would go by if nothing were learned, where the host settles that for each run.
            steps: its evaluations per stream; ``None`` if that is not known yet.
            whole: whether it covers the whole noise schedule.
        """
        identity, request = self._identify(), request or self._request
        group = group_of(request.group)
        if group is None and several_processes() and given(request.group) is not False:
            # What these processes share is not known, so neither is whether they may know different things.
            return Lesson(request, self, identity, None, whole, deaf=True)
        with self._lock:
            model = self._models.get(identity)
            if model is None:
                model = self._models[identity] = self._recalled(identity, group)
            return Lesson(evolve(request, config=model.config_for(request, whole, steps)), self, identity, model.known, whole)

    def _recalled(self, identity: ModelIdentity, group: RankGroup | None) -> _Model:
        """What earlier runs taught; of ranks, what the first one knows: their folders may be those of several machines."""

        def recall() -> tuple[Calibration | None, Calibration | None]:
            known = learned(identity, self._streams)
            return known, learned(identity) if known is None else None

        if group is None:
            return _Model(*recall())
        group.begin({"the model": (identity.digest(), identity.model)}, Occasion.KNOWLEDGE)
        return _Model(*group.from_first(recall))

    def made_in_full(self, identity: ModelIdentity, whole: bool, steps: int) -> None:
        """A run in full was made for ``learn="first"``. One as long would not teach more, also if this one taught nothing."""
        with self._lock:
            made = self._models[identity].made_in_full
            made[whole] = max(steps, made.get(whole, 0))

    def learn(self, identity: ModelIdentity, lesson: Calibration, group: RankGroup | None = None) -> None:
        """Keep what a run taught, if it is worth more than what is known. Of ranks the first one does, and tells the others."""
        about = {**self.provenance(), **lesson.provenance}
        lesson = evolve(lesson, provenance=about)
        with self._lock:
            model = self._models[identity]

            def keep() -> Calibration | None:
                return _kept(identity, lesson, model.known)

            model.now_known(keep() if group is None else group.from_first(keep))


def _kept(identity: ModelIdentity, lesson: Calibration, known_here: Calibration | None) -> Calibration | None:
    """What is known after a lesson, and kept in the user's folder."""
    known = learned(identity, lesson.streams)
    if known is None and known_here is not None and set(known_here.streams) == set(lesson.streams):
        known = known_here  # the folder cannot be written
    now = joined(known, lesson)
    if now is not None:
        file = remember(identity, now)
        now = now if file is None else learned(identity, now.streams)  # with its date
    return now or known


@define(eq=False)
class _Model:
    """What is known of one model."""

    known: Calibration | None
    other: Calibration | None = None
    """What serves as long as nothing is known: runs of other streams taught it."""
    made_in_full: dict[bool, int] = field(factory=dict, init=False)
    """Steps of the longest run in full that was made here of the whole schedule (``True``), and of a part of one."""
    _configs: dict[int, tuple[RunConfig, RunConfig]] = field(factory=dict, init=False)
    """What was asked for, by its identity, and the same as it is planned from what is known."""

    def now_known(self, known: Calibration | None) -> None:
        self.known = known
        self._configs.clear()

    def config_for(self, request: AttachRequest, whole: bool, steps: int | None) -> RunConfig:
        """What the next run goes by; the same object while nothing new is known, which spares planning again."""
        if request.learn == "first" and self._wants_all(whole, steps):
            return always_compute(IN_FULL)
        if steps is not None and self.known is None and not can_teach(None, whole=whole, full=False, levels=None, steps=steps):
            return request.config if self.other is None else request.config.taught_by(self.other)
        found = self._configs.get(id(request.config))
        if found is None:
            if len(self._configs) >= _CONFIGS_KEPT:
                self._configs.clear()
            asked, known = request.config, self.known or self.other
            planned = asked.while_learning() if known is None else asked.taught_by(known)
            found = self._configs[id(asked)] = asked, planned
        return found[1]

    def _wants_all(self, whole: bool, steps: int | None) -> bool:
        """Whether a run should compute every step: the longest one that did is half as long at most."""
        made = self.made_in_full.get(whole, 0)
        enough = made > 0 if steps is None else steps < 2 * made
        return not enough and should_compute_all(self.known, whole=whole, steps=steps)


def _in_full(config: RunConfig) -> bool:
    """Whether every step computes."""
    return config.given is None and not config.schedules


def _plans_none(session: Session) -> bool:
    """Whether the run's plan skips nothing, as that of ``speedup=1``."""
    plan = session.schedule
    return plan is not None and all(decision.computes for step in plan.decisions for decision in step)


def _levels_told(session: Session) -> tuple[float, ...] | None:
    """The noise level of every evaluation as the host told it; ``None`` if it did not."""
    told = {entry.step: entry.sigma for entry in session.trace if entry.sigma is not None}
    return tuple([told[step] for step in range(session.steps)]) if len(told) == session.steps else None
