"""One run of an attached model, as its handle knows it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from magpolicy import ArgumentError, AttachRequest, Calibration, Curve, Decision, Session
from magpolicy.adapter import calibration_of, decides_by, differences, digest
from magpolicy_torch.blocks._other_caches import another_cache, another_on, cache_on
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.evaluation._interceptor import HostCall
from magpolicy_torch.evaluation._model import COMPUTES, HostModel
from magpolicy_torch.evaluation._record import Record
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.host._identity import classes_of
from magpolicy_torch.host._learning import Lesson
from magpolicy_torch.host._report import Report
from magpolicy_torch.ranks._find import group_of
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals._moments import Moments, calibrated, curve_of, measured, moments_for
from magpolicy_torch.residuals._store import ResidualStore
from torch import nn

_MEND = ". Describe its blocks, blocks=BlockStack(..., layout=...), or skip the whole model, scope='model'; please report it"
_CHECKPOINTING = "with gradient checkpointing the backward pass runs the blocks again, so every step computes"


class HostRun:
    """One run of a host: its session, and its residuals on each stack (two experts share a session).

    Args:
        request: the settings of the handle.
        session: decides the run; it begins here.
        start: position in the run of the first evaluation.
        noise: the noise level of each evaluation, if the host can tell it and the session cannot.
        lesson: learns from the run; ``request`` is its own.
        stop: the position after the run's last evaluation; by default the end of the schedule.
    """

    def __init__(
        self,
        request: AttachRequest,
        session: Session,
        start: int = 0,
        noise: Sequence[float] | None = None,
        lesson: Lesson | None = None,
        stop: int | None = None,
    ) -> None:
        self.session = session
        self.step = start
        """No call to come is of a step before this one."""
        self.scope = request.scope
        self.stack = ""
        """The blocks that are bypassed, in words; empty until the model is called."""
        self.model = ""
        """Class of the model; empty until it is called."""
        self.record = Record()
        self.moments = moments_for(request, session.steps)
        self.lesson = lesson
        self._request, self._noise = request, noise
        self._runs: dict[BlockStack, Run] = {}
        self._unsupported = False
        self.other_cache = ""
        """Another cache that was on a model, and what that means for the run, in words."""
        self.provenance: Mapping[str, Any] | None = None
        """Which model it measured, noted at its end: that model may change, or go."""
        self.group = group_of(request.group)
        """The ranks that make this run together; ``None``: this process alone."""
        session.begin(start)
        session.report_by(lambda: self.report)
        if self.group is not None:
            self._agree(self.group)
        if lesson is not None:
            lesson.begin(session, start, stop)

    def _agree(self, group: RankGroup) -> None:
        """Make sure that all ranks decide alike in this run.

        Raises:
            RunError: they would not, on every rank.
        """
        parts, request = decides_by(self.session), self._request
        kind = f"calibrate={request.calibrate}, learn={request.learn!r}, scope={request.scope!r}"
        try:
            group.begin({**parts, "what the run is for": (digest(kind), kind)})
        except BaseException:
            self.session.end()
            raise

    def go_to(self, step: int) -> None:
        """From now on calls are those of ``step``."""
        self.step = step

    def check_step(self, step: int) -> int:
        """``step`` as a whole number.

        Raises:
            ArgumentError: the run has no such step, or is past it.
        """
        found = operator.index(step) if hasattr(step, "__index__") else -1
        steps = self.session.steps
        if not self.step <= found < steps:
            raise ArgumentError(f"step={step!r} is not to come in this run of {steps} steps; use {self.step} to {steps - 1}")
        return found

    def evaluate(
        self,
        model: HostModel,
        streams: Sequence[str],
        call: HostCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        must_compute: str = "",
    ) -> Any:
        """Evaluate one call of ``model`` at the current step. A stream that was evaluated there already is at its next step.

        Args:
            must_compute: why this call cannot skip, in words.
        """
        new = model.stack not in self._runs
        run = self.on(model.stack)
        if not self.model:
            self.model, *_ = classes_of(model.module)
        if must_compute or checkpointing(model.module):
            run.unsupported.update(streams)
            run.record.problem(must_compute or _CHECKPOINTING)
        if cache := cache_on(model.module) if new else self._cache_put_on(model):
            run.unsupported.update(streams)
            self.other_cache = self.other_cache or another_on(model.module, cache)
            run.record.problem(self.other_cache)
        return model.evaluate(run, streams, call, args, kwargs, earliest=self.step, levels=self._noise)

    def _cache_put_on(self, model: HostModel) -> str:
        """The cache that was enabled since the run began, as far as the model and the ends of its stack show it at a glance."""
        if getattr(model.module, "_cache_config", None) is not None:
            return cache_on(model.module)
        for module in (model.module, model.stack.blocks[0], model.stack.blocks[-1]):
            if getattr(module.__dict__.get("_diffusers_hook"), "hooks", None):
                return another_cache((model.module, *model.stack.blocks))
        return ""

    def on(self, stack: BlockStack) -> Run:
        """The run's residuals and records on ``stack``. It frees those of another expert, which this one cannot use."""
        run = self._runs.get(stack)
        if run is None:
            for other in self._runs.values():
                other.free()
            store = ResidualStore(self._request.offload, self._request.storage_dtype)
            channel_dim = 1 if stack.scope == "model" else -1
            samples = None if self.lesson is None else self.lesson.samples
            if self.lesson is not None and self._runs:
                self.lesson.expert_steps.append(self.step)
            run = self._runs[stack] = Run(self.session, store, self.moments, samples, channel_dim, self.record, self.group)
            self.scope, self.stack = stack.scope, stack.description
        return run

    def forget(self, streams: Sequence[str]) -> None:
        """Drop the residuals of these streams."""
        for run in self._runs.values():
            for stream in streams:
                run.store.drop(stream)

    def stop(self) -> None:
        """Note that the model raised, or that an exception ended the run: its calibration is incomplete."""
        if self.moments is not None:
            self.moments.stopped = True
        if self.lesson is not None:
            self.lesson.drop()

    def end(self) -> None:
        """End the run, and free its residuals."""
        try:
            self.session.end()
        finally:
            for run in self._runs.values():
                run.free()
            self._unsupported = self.unsupported
            self._runs.clear()  # what is kept of it for reports keeps no blocks alive
            if self.moments is not None and self.group is not None and self._went_to_its_end:
                self.moments.sum_over(self.group)
            if self.lesson is not None:
                self.lesson.end(self.session, self.group)

    def note(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        """At its end, if it measured a model: note which one."""
        if self.moments is not None and self._went_to_its_end:
            self.provenance = dict(describe())

    @property
    def _went_to_its_end(self) -> bool:
        trace = self.session.trace
        return bool(trace) and trace[-1].step >= self.session.steps - 1 and not (self.moments and self.moments.stopped)

    @property
    def unsupported(self) -> bool:
        """Whether some call's blocks could not be followed."""
        return self._unsupported or any(run.unsupported for run in self._runs.values())

    @property
    def in_vain(self) -> str:
        """Why no step was skipped of those that were to be, as a sentence for the user; empty if one was, or none was to be.
        Where another cache was on one of two experts, that is said though the other one skipped."""
        reasons = [entry.decision for entry in self.session.trace]
        wanted = len(reasons) if self.moments is not None else reasons.count(Decision.UNSUPPORTED)
        if not (wanted and self.unsupported) or any(reason.skip for reason in reasons):
            return self.other_cache if wanted else ""
        done = "nothing was skipped of what was to be" if self.moments is None else "nothing was measured"
        unfollowed = any(COMPUTES in words for words in self.record.problems)
        return f"{done}: {'; '.join(self.record.problems)}{_MEND if unfollowed else ''}"

    @property
    def residuals_held(self) -> int:
        """Residuals held now."""
        return sum(run.store.count for run in self._runs.values())

    @property
    def report(self) -> Report:
        """The report of the run so far."""
        return Report.of(self.session, self.record, self.scope, self.model)

    @property
    def curve(self) -> Curve:
        """The curve that the run measured.

        Raises:
            RunError: not calibrating, or a model whose blocks could not be followed.
            ArgumentError: the residuals make none.
        """
        return curve_of(self._measured("curve"), self.session)

    def calibration(self, provenance: Mapping[str, Any]) -> Calibration:
        """The calibration that the run measured, on a model that ``provenance`` describes.

        Raises:
            RunError: not calibrating, not over, stopped, or a model whose blocks could not be followed.
            ArgumentError: the residuals make none.
        """
        return calibrated(self._measured("calibration"), self.session, self.about(provenance))

    def about(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """``provenance``, with what is bypassed."""
        return {**provenance, "scope": self.scope, **({"stack": self.stack} if self.stack else {})}

    def differences(self, conditions: Mapping[str, Any]) -> tuple[str, ...]:
        """In what the run differs from the one that its calibration was measured in, in words.

        Args:
            conditions: scheduler, shift and guidance, by the names of provenance, as far as the host knows them.
        """
        calibration = calibration_of(self._request.config.given)
        if calibration is None:
            return ()
        return differences(calibration, self.about(conditions), (entry.stream for entry in self.session.trace))

    def _measured(self, what: str) -> Moments:
        return measured(what, self.moments, self.unsupported)


def checkpointing(module: nn.Module) -> bool:
    """Whether the backward pass will run blocks again: those that the forward pass skipped it must not."""
    return torch.is_grad_enabled() and bool(getattr(module, "gradient_checkpointing", False))
