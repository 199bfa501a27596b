"""What :func:`magpolicy.attach` returns for a pipeline or a model of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import diffusers
from magpolicy import AdapterError, AttachRequest, Calibration, Curve, RunError
from magpolicy_diffusers._denoiser import Denoiser
from magpolicy_diffusers._pipeline import denoisers_of, unwatch, watch
from magpolicy_diffusers._provenance import provenance
from magpolicy_diffusers._runs import GivenRun, HostRun, OwnLoop, PipelineCall, RunDriver
from magpolicy_torch.blocks._stack import BlockStack, visited
from magpolicy_torch.evaluation._interceptor import HostCall, unwrapped
from magpolicy_torch.host._handle import Attached
from magpolicy_torch.host._report import Report

if TYPE_CHECKING:
    from torch import nn

_BATCHED = ("cond_uncond",)
"""Names that pipelines give to a call whether it holds one branch or two."""
_COND_FIRST = ("DiTPipeline", "ZImage", "AceStep")
"""Pipelines (or families) that put the conditional half of a batch first; the others put it last."""


class Handle(Attached):
    """A policy attached to a diffusers pipeline, or to a model that is called in your own loop.

    A pipeline is called as ever: its scheduler tells the step, and each of its calls is a run (or several, where it makes a
    video in sections). A model by itself goes by its timestep: a run begins with the first call, and ends after the last of
    ``steps`` steps, or when the timestep turns back; :meth:`run` delimits it explicitly. Branches of guidance are named by
    diffusers' ``cache_context`` or by :meth:`stream`; others are told apart by what they are conditioned on, and by call order.

    Threads (contexts) don't see each other's runs.
    """

    def __init__(self, target: Any, modules: dict[str, nn.Module], request: AttachRequest) -> None:
        super().__init__()
        self.target = target
        self.denoisers = tuple(Denoiser(module, request, self._forward) for module in modules.values())
        self._pipe = None if isinstance(unwrapped(target), diffusers.ModelMixin) else target
        self._names = tuple(modules)
        self._request = request
        self._driver: ContextVar[RunDriver | None] = ContextVar("magpolicy_driver", default=None)
        self._own: WeakSet[RunDriver] = WeakSet()
        self._last: RunDriver | None = None

    @classmethod
    def attach(cls, target: Any, request: AttachRequest) -> Handle:
        """Attach to a pipeline or a model; nothing is patched if that fails.

        Raises:
            AdapterError: it has no denoiser, is attached already, has another cache, or its blocks cannot be told.
            ArgumentError: an option that is not known here.
        """
        model = unwrapped(target)
        if isinstance(model, diffusers.ModelMixin):
            handle = cls(target, {"model": target}, request)
        else:
            modules = denoisers_of(target)
            if not modules:
                raise AdapterError(f"target={type(target).__name__} has no denoiser that is known; attach to its model instead")
            handle = cls(target, {name: getattr(target, name) for name in modules}, request)
        watched = [] if handle._pipe is None else [(partial(watch, target, handle._call), partial(unwatch, target))]
        handle._install(*((d.install, d.remove) for d in handle.denoisers), *watched)
        return handle

    @contextmanager
    def run(self, steps: int | None = None, sigmas: Sequence[float] | None = None, *, start: int = 0) -> Iterator[Handle]:
        """One run in your own loop: ``with handle.run(steps=28): ...``. Leaving it, also by an exception, frees what it held.

        Args:
            steps: evaluations per stream; by default the ``steps`` given to ``attach``.
            sigmas: their noise levels, where known.
            start: position in the run of the first evaluation (image to image, a second stage).

        Raises:
            RunError: detached, or a run is under way in this thread.
            ArgumentError: the settings do not fit a run of that length.
        """
        if isinstance(self._driver.get(), (GivenRun, PipelineCall)):
            raise RunError("run(): a run is under way here; leave its with block first")
        with self._under_way(), self._driven_by(GivenRun(self._request, steps, sigmas, start)):
            yield self

    def go_to(self, step: int) -> None:
        driver = self._driver.get()
        if not isinstance(driver, GivenRun):
            raise RunError(f"go_to({step}): no run is under way here; use it inside 'with handle.run(steps=...):'")
        driver.go_to(step)

    go_to.__doc__ = Attached.go_to.__doc__

    @property
    def report(self) -> Report:
        """What the run under way here has done so far, or else what the last one did.

        Raises:
            RunError: there was none yet.
        """
        return self._current("report").report

    @property
    def reports(self) -> tuple[Report, ...]:
        """One report for each run of the last call: pipelines that work in sections or stages make several."""
        return tuple(loop.report for loop in self._loops())

    @property
    def curve(self) -> Curve:
        """The curve that the last run measured; attach with ``calibrate=True``.

        Raises:
            RunError: not calibrating, no run yet, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no curve (another resolution midway, NaN).
        """
        return self._current("curve").curve

    @property
    def calibration(self) -> Calibration:
        """What the last run measured; attach with ``calibrate=True``, and let the run go to its end.

        Raises:
            RunError: not calibrating, no run yet, a run that was stopped, or a model whose blocks could not be followed.
            ArgumentError: the residuals make no calibration (another resolution midway, NaN).
        """
        return self._current("calibration").calibration(provenance(self._pipe, self.module))

    @property
    def module(self) -> nn.Module:
        """The model attached to, of a pipeline its first denoiser."""
        module: nn.Module = self.denoisers[0].module
        return module

    @property
    def stack(self) -> BlockStack:
        """The blocks that are bypassed in it."""
        return self.denoisers[0].stack

    @property
    def scope(self) -> str:
        """What a skip leaves out: ``"stack"``, or ``"model"`` where that was asked for or no stack can be separated."""
        return self.stack.scope

    @property
    def residuals_held(self) -> int:
        """Residuals held for the run under way here: one per stream, two where a forecast needs them, none after it."""
        driver = self._driver.get()
        return 0 if driver is None or driver.loop is None else driver.loop.residuals_held

    def detach(self) -> None:
        super().detach()
        for driver in list(self._own):
            driver.close()

    detach.__doc__ = Attached.detach.__doc__

    def _current(self, what: str) -> HostRun:
        loops = self._loops()
        if not loops:
            raise RunError(f"{what}: there was no run yet; call the pipeline, or the model in your loop")
        return loops[-1]

    def _loops(self) -> list[HostRun]:
        """Those of the call under way here, or else of the last one."""
        driver = self._driver.get()
        if driver is None or driver.loop is None:
            driver = self._last
        return [] if driver is None else driver.loops

    @contextmanager
    def _driven_by(self, driver: RunDriver) -> Iterator[None]:
        if isinstance(own := self._driver.get(), OwnLoop):
            own.close()  # a loop without end: what comes now is another one
        token = self._driver.set(driver)
        try:
            yield
        except BaseException:
            driver.failed()
            raise
        finally:
            try:
                driver.close()
            finally:
                self._driver.reset(token)
                with self._lock:
                    self._last = driver

    def _call(self, call: Callable[[], Any]) -> Any:
        """In place of each call of the pipeline."""
        if isinstance(self._driver.get(), PipelineCall):  # a subclass calls its parent's
            return call()
        modules = denoisers_of(self._pipe)
        strange = [name for name in self._names if modules.get(name) not in [d.module for d in self.denoisers]]
        if strange:
            self._warn(f"{', '.join(strange)} of {type(self._pipe).__name__} is not what was attached to; attach again")
        with self._under_way(), self._driven_by(PipelineCall(self._request, self._pipe, self._boundary())):
            return call()

    def _boundary(self) -> float | None:
        """Where the second expert takes over, as a share of pure noise (Wan2.2's ``boundary_ratio``)."""
        share = getattr(getattr(self._pipe, "config", None), "boundary_ratio", None)
        return float(share) if share is not None and len(self.denoisers) > 1 else None

    def _forward(self, denoiser: Denoiser, original: HostCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of each call of a denoiser."""
        if visited(denoiser.stack) or denoiser.arguments.fills_cache(args, kwargs):  # it calls itself, or is no step
            return original(*args, **kwargs)
        driver = self._driver.get()
        if driver is None:
            driver = OwnLoop(self._request)
            self._driver.set(driver)
            self._own.add(driver)
        loop = driver.enter(partial(denoiser.arguments.timestep, args, kwargs))
        if isinstance(driver, OwnLoop):
            self._last = driver
        if loop is None:
            self._once(f"{denoiser.name} was called outside a run, so nothing is skipped: {driver.problem}", driver.problem)
            return original(*args, **kwargs)
        streams = self._streams_of(loop, denoiser, args, kwargs)
        if loop.moments is not None:
            loop.moments.note(latents=denoiser.arguments.latents(args, kwargs))
        before = len(loop.record.past_end)
        try:
            result = loop.evaluate(denoiser, streams, original, args, kwargs)
        except BaseException:
            driver.failed()
            raise
        if loop.record.past_end and not before:
            self._warn(f"{denoiser.name} was evaluated more often than the run's {loop.session.steps} steps; the rest computes")
        driver.left()
        return result

    def _streams_of(self, loop: HostRun, denoiser: Denoiser, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """The streams of a call: as named by the user, by the pipeline, or by what they are conditioned on."""
        named, context = self._streams.get(), denoiser.context
        if named:
            return named
        if context not in (None, *_BATCHED):
            name = str(context).removeprefix("pred_")
            return loop.branches.given([name]) if isinstance(self._driver.get(), PipelineCall) else (name,)
        order = ("cond", "uncond") if type(self._pipe).__name__.startswith(_COND_FIRST) else ("uncond", "cond")
        says = denoiser.arguments
        guided = getattr(self._pipe, "do_classifier_free_guidance", None)
        return loop.branches.name(says.condition(args, kwargs), says.latents(args, kwargs), order, guided)

    def _once(self, message: str, problem: str) -> None:
        if problem and not self._warned:
            self._warned = True
            self._warn(message)

    def __repr__(self) -> str:
        stacks = ", ".join(map(repr, (d.stack for d in self.denoisers)))
        return f"<Handle on {type(self.target).__name__}, {stacks}, {'' if self._attached else 'not '}attached>"
