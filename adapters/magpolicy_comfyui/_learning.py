"""Learning from samplings: what one computes is looked at, and later ones of the model are planned from it.

The learning itself is every host's (:class:`magpolicy_torch.adapter.Learner`). A sampling that was interrupted teaches nothing:
:class:`magpolicy_comfyui._runs.Attachment` stops its run.
"""

from __future__ import annotations

from typing import Any

from attrs import define, evolve, field

from magpolicy import AttachRequest
from magpolicy.adapter import ModelIdentity, RunConfig, always_compute, learned, should_compute_all
from magpolicy_comfyui._settings import Settings
from magpolicy_torch import adapter

IN_FULL = "learn: this run computes every step, and later runs are planned from it"


@define(eq=False)
class Lessons:
    """Those of one attachment: what it was taught lasts as long as it, also where the user's folder cannot be written."""

    _learners: dict[tuple[str, ...], adapter.Learner | None] = field(factory=dict, init=False)
    """By the streams of the run: at a guidance scale of 1 there is one, else there are two."""
    _identity: ModelIdentity | None = field(default=None, init=False)

    def next(
        self, request: AttachRequest, identity: ModelIdentity, streams: tuple[str, ...], *, whole: bool, steps: int
    ) -> adapter.Lesson | None:
        """The lesson of a sampling that would go by ``request``; ``None`` if it teaches nothing.

        Args:
            identity: the model.
            streams: those of the sampling.
            whole: whether it is all of a schedule.
            steps: evaluations of the whole schedule.
        """
        if not teaches(request):
            return None
        self._identity = identity
        if streams not in self._learners:
            self._learners[streams] = adapter.Learner.of(request, self._identify, self._describe, streams)
        learner = self._learners[streams]
        if learner is None:
            return None
        lesson = learner.lesson(request, whole=whole, steps=steps)
        if not lesson.request.config.schedules:
            lesson.request = evolve(lesson.request, config=always_compute(IN_FULL))
        return lesson

    def _identify(self) -> ModelIdentity:
        assert self._identity is not None
        return self._identity

    def _describe(self) -> dict[str, Any]:
        return about(self._identify())


def teaches(request: AttachRequest) -> bool:
    """Whether runs of ``request`` teach later ones: that was asked for, and no calibration of the user's decides."""
    return bool(request.learn) and request.config.learns


def about(identity: ModelIdentity | None) -> dict[str, Any]:
    """What a calibration says of the run it was made in, and of its model."""
    model = {} if identity is None else {"model": identity.model, "identity": identity.to_dict()}
    return {**model, "versions": adapter.versions(), "host": "ComfyUI"}


def next_config(
    settings: Settings, config: RunConfig, steps: int, identity: ModelIdentity | None, streams: tuple[str, ...] = ()
) -> RunConfig:
    """What the next run of a whole schedule, of so many steps, goes by; ``config`` if nothing were to be learned."""
    if settings.learn != "first" or not config.learns:
        return config
    known = None if identity is None else learned(identity, streams or None)
    return always_compute(IN_FULL) if should_compute_all(known, whole=True, steps=steps) else config
