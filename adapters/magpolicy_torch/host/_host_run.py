"""One run of an attached model, as its handle knows it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from magpolicy import ArgumentError, AttachRequest, Calibration, Curve, Decision, Session
from magpolicy.adapter import ModelIdentity, calibration_of, decides_by, differences, digest, remarks_on_choice
from magpolicy_torch.blocks._other_caches import another_cache, cache_on
from magpolicy_torch.blocks._stack import BlockStack
from magpolicy_torch.blocks._unwrap import own_name
from magpolicy_torch.device._timer import Timer
from magpolicy_torch.evaluation._interceptor import HostCall
from magpolicy_torch.evaluation._model import COMPUTES, HostModel
from magpolicy_torch.evaluation._record import Record, Unlisted
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.evaluation._why import Why
from magpolicy_torch.host._identity import classes_of
from magpolicy_torch.host._learning import Lesson
from magpolicy_torch.host._reasons import FAILED, is_to_skip, why_none
from magpolicy_torch.host._report import Report
from magpolicy_torch.ranks._find import group_of
from magpolicy_torch.ranks._group import RankGroup
from magpolicy_torch.residuals._moments import Moments, calibrated, curve_of, measured, moments_for
from magpolicy_torch.residuals._store import ResidualStore
from torch import Tensor, nn

_MEND = ". Describe its blocks, blocks=BlockStack(..., layout=...), or skip the whole model, scope='model'; please report it"


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
        self.in_vain = ""
        """At its end: why nothing was skipped of what was to be, as a sentence for the user; empty otherwise."""
        self.provenance: Mapping[str, Any] | None = None
        """Which model it measured, noted at its end: that model may change, or go."""
        self.group = group_of(request.group)
        """The ranks that make this run together; ``None``: this process alone."""
        session.begin(start)
        self._to_skip = is_to_skip(session)
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
        other_cache: str = "",
    ) -> Any:
        """Evaluate one call of ``model`` at the current step. A stream that was evaluated there already is at its next step.

        Args:
            must_compute: why this call cannot skip, in words.
            other_cache: what another cache on the model means, in words, where the host knows of one.
        """
        new = model.stack not in self._runs
        run = self.on(model.stack)
        if not self.model:
            self.model, *_ = classes_of(model.module)
        if torch.is_grad_enabled():
            must_compute = must_compute or gradients(model.module, args, kwargs)
        if must_compute:
            run.unsupported.update(streams)
            run.record.problem(must_compute)
        if not run.yields:
            cache = other_cache or (cache_on(model.module) if new else _put_on_since(model.module, model.stack))
            if cache:
                run.yield_to(other_cache or Why.OTHER_CACHE.says(cache=cache, model=own_name(model.module)))
        return model.evaluate(run, streams, call, args, kwargs, earliest=self.step, levels=self._noise)

    def compute(self, streams: Sequence[str], call: Callable[[], Any], *, evaluation: int, sigma: float, why: str) -> Any:
        """Make a call that has no place in the run, and note it.

        Args:
            streams: those of the call.
            call: makes it.
            evaluation: which of the host's evaluations it belongs to.
            sigma: its noise level.
            why: it has none, in words.
        """
        decided, timer = len(self.session.trace), Timer()
        result = call()
        self.record.laps.append((False, timer.stop()))
        self.record.unlisted.extend(Unlisted(evaluation, stream, sigma, decided) for stream in streams)
        self.record.problem(why)
        return result

    @property
    def evaluated(self) -> bool:
        """Whether anything was evaluated."""
        return bool(self.session.trace or self.record.unlisted)

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

    def too_long(self) -> str:
        """What to tell the user, and the report, where more was evaluated than the run has steps. It teaches nothing."""
        unnamed = set(self.record.past_end) == {"single"}  # it may be two conditions that pass for one
        words = (Why.TOO_LONG_UNNAMED if unnamed else Why.TOO_LONG).says(model=self.model, steps=self.session.steps)
        if self.lesson is not None:
            self.lesson.drop()
        self.record.problem(words)
        return words

    def forget(self, streams: Sequence[str]) -> None:
        """Drop the residuals of these streams."""
        for run in self._runs.values():
            for stream in streams:
                run.drop(stream)

    def stop(self) -> None:
        """Note that the model raised, or that an exception ended the run: its calibration is incomplete."""
        if self.moments is not None:
            self.moments.stopped = True
        if self.lesson is not None:
            self.lesson.drop()

    def end(self) -> None:
        """End the run, and free its residuals."""
        if self.session.active:
            self._tell_in_vain()
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
        return self._unsupported or any(run.unsupported or run.yields for run in self._runs.values())

    def _tell_in_vain(self) -> None:
        """At its end: if it skipped nothing of what was to be, say why, and have the report say it.

        Where another cache had a part of the run, that is said though ours skipped in the rest.
        """
        reasons, problems = {entry.decision for entry in self.session.trace}, self.record.problems
        mend = _MEND if any(COMPUTES in words for words in problems) else ""
        if self.moments is not None and reasons and self.unsupported:
            self.in_vain = f"nothing was measured: {'; '.join(problems)}{mend}"
        elif self.moments is None and self._skipped_nothing(reasons):
            words = why_none(self.session, self.record)
            self.in_vain = f"nothing was skipped of what was to be: {'; '.join(words)}{mend}"
            for each in words:
                self.record.problem(each)
        elif not reasons.isdisjoint((Decision.UNSUPPORTED, Decision.ANSWERED)):
            self.in_vain = self.record.other_cache

    def _skipped_nothing(self, reasons: Set[Decision]) -> bool:
        """Whether the run, which is at its end, skipped nothing of what was to be."""
        if any(reason.skip for reason in reasons):
            return False
        went = self._went_to_its_end and len({entry.step for entry in self.session.trace}) > 1  # the first has nothing to reuse
        # What computes as the session settled at its beginning was told there.
        went = went and (bool(self.session.replans) or reasons != {Decision.SCHEDULED})
        return (self._to_skip and (went or bool(self.record.unlisted))) or not reasons.isdisjoint(FAILED)

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

    def differences(
        self, conditions: Mapping[str, Any], identify: Callable[[], ModelIdentity] | None = None
    ) -> tuple[str, ...]:
        """In what the run differs from the one that its calibration was measured in, in words.

        Args:
            conditions: scheduler, shift and guidance, by the names of provenance, as far as the host knows them.
            identify: tells the model, where the calibration was to be found by it; which was found, or why none, is said too.
        """
        calibration = calibration_of(self._request.config.given)
        found: tuple[str, ...] = ()
        if identify is not None and self._request.finds_its_source:
            found = remarks_on_choice(identify(), calibration, by_rule=self._request.config.by_rule)
        if calibration is None:
            return found
        run = differences(calibration, self.about(conditions), (entry.stream for entry in self.session.trace))
        return (*run, *found)

    def _measured(self, what: str) -> Moments:
        return measured(what, self.moments, self.unsupported)


def _put_on_since(module: nn.Module, stack: BlockStack) -> str:
    """A cache that was enabled while a run goes on, in words, as far as the model and its stack's ends show at a glance."""
    if getattr(module, "_cache_config", None) is not None:
        return cache_on(module)
    for each in (module, stack.blocks[0], stack.blocks[-1]):
        if getattr(each.__dict__.get("_diffusers_hook"), "hooks", None):
            return another_cache((module, *stack.blocks))
    return ""


def gradients(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Why a call with gradients on must compute, in words; empty if it need not.

    The backward pass must not run blocks again that the forward pass skipped; and where nothing but what the model is given
    has gradients (guidance by a loss), they are what is wanted. In a loop that merely left out ``no_grad`` weights have some.
    """
    if getattr(module, "gradient_checkpointing", False):
        return Why.CHECKPOINTING.says()
    given = any(isinstance(value, Tensor) and value.requires_grad for value in (*args, *kwargs.values()))
    return Why.GRADIENTS.says() if given and not any(weight.requires_grad for weight in module.parameters()) else ""


def trains(module: nn.Module) -> bool:
    """Whether calls of now train ``module``: gradients are on, it is in training mode, and weights have some.

    This is asked only where nothing but timesteps says what a run is: those of a training loop may fall by chance, and look
    like one. In a run that somebody opened, calls skip as they were asked to, training or not (distillation through a
    schedule). A module of plain PyTorch is in training mode and has gradients from when it is made, and loops around it often
    leave that so: there the mode tells nothing, and runs are always opened.
    """
    return torch.is_grad_enabled() and module.training and any(weight.requires_grad for weight in module.parameters())
