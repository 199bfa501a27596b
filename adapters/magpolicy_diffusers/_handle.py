"""What :func:`magpolicy.attach` returns for a pipeline or a model of diffusers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve

from magpolicy import AdapterError, AttachRequest, RunError
from magpolicy.adapter import check_fits
from magpolicy_diffusers._denoiser import Denoiser
from magpolicy_diffusers._pipeline import (
    compiled_around,
    denoisers_of,
    is_watched,
    model_in,
    no_denoiser,
    stages_of,
    unwatch,
    watch,
    watcher,
    with_callbacks,
    wrapped_in,
)
from magpolicy_diffusers._provenance import conditions, identity, provenance
from magpolicy_diffusers._runs import GivenRun, HostRun, OwnLoop, PipelineCall, RunDriver
from magpolicy_torch.adapter import (
    AttachedToLoop,
    BlockStack,
    Held,
    Learner,
    Scoped,
    SharedBy,
    StreamNamer,
    check_denoises,
    classes_of,
    own_name,
    unwrap,
)
from torch import nn

if TYPE_CHECKING:
    from magpolicy.adapter import ModelIdentity


_PUT_BACK = (
    ". If that was {0} itself: something has replaced its __call__ since it was attached, as cache-dit does when it is "
    "disabled; attach again"
)


class Handle(AttachedToLoop):
    """A policy attached to a diffusers pipeline, or to a model that is called in your own loop.

    A pipeline is called as ever: its scheduler tells the step, and each of its calls is a run (or several, where it makes a
    video in sections). A model by itself goes by its timestep: a run begins with the first call, and ends after the last of
    ``steps`` steps, or when the timestep turns back; :meth:`run` delimits it explicitly. Branches of guidance are named by
    diffusers' ``cache_context`` or by :meth:`stream`; others are told apart by what they are conditioned on, and by call order.

    Threads (contexts) don't see each other's runs.
    """

    __module__ = "magpolicy_diffusers"

    no_run = "call the pipeline, or the model in your loop"

    def __init__(
        self, target: Any, modules: Mapping[str, nn.Module], request: AttachRequest, replaced: Handle | None = None
    ) -> None:
        request = evolve(request, group=SharedBy(modules.values(), request.group))
        super().__init__(request)
        self._names = tuple(modules)
        self._learner = Learner(request, lambda: self.identity, self.provenance)
        self.driver: Scoped[RunDriver] = Scoped("magpolicy_driver")
        self._last: Sequence[HostRun] = ()
        self._of_pipeline = model_in(target) is None
        self._kind = own_name(target)
        distinct = {id(unwrap(module)): module for module in modules.values()}
        denoisers = [Denoiser.of(module, request, replaced) for module in distinct.values()]
        self._held = tuple([(Held(denoiser), Held(denoiser.module)) for denoiser in denoisers])
        self._scope = denoisers[0].stack.scope
        self._shown = f"{self._kind}, {', '.join(repr(denoiser.stack) for denoiser in denoisers)}"
        self._target = Held(target)
        if self._of_pipeline:  # the models keep this handle alive, and they may outlive the pipeline
            self._target.loosen()

    @classmethod
    def attach(cls, target: Any, request: AttachRequest) -> Handle:
        """Attach to a pipeline or a model, in the place of the handle that it has. If that fails, nothing is changed.

        Raises:
            AdapterError: it has no denoiser or another cache, or its blocks cannot be told.
            ArgumentError: an option that is not known here, or the calibration is another model's.
            RunError: a run of the handle that it has is under way.
        """
        before = cls._own_of(target)
        model = model_in(target)
        if model is not None:
            check_denoises(model)
        for part in [target] if model is not None else [getattr(target, name) for name in denoisers_of(target)]:
            if compiled := compiled_around(part):
                raise AdapterError(
                    f"{compiled} was compiled with {own_name(model_in(part))} in it, so no call of that can be told; "
                    "compile the model in it alone, with magpolicy.compile() after attaching"
                )
        if model is not None:
            handle = cls(target, {"model": model}, request, before)
        else:
            modules = denoisers_of(target)
            if not modules:
                raise no_denoiser(target)
            handle = cls(target, modules, request, before)
        roles = StreamNamer.roles if handle._of_pipeline else ()
        classes = classes_of(*(denoiser.module for denoiser in handle.denoisers))
        check_fits(request.config.given, classes, host="diffusers", roles=roles)
        entered = [(partial(d.enter, handle), partial(d.leave, handle)) for d in handle.denoisers]
        if handle._of_pipeline:
            watched = partial(watch, target, handle._call, handle.let_go)
            handle.install(*entered, (watched, partial(unwatch, weakref.ref(target))), replaces=before)
        else:
            handle.install(*entered, replaces=before)
        return handle

    @classmethod
    def on(cls, target: Any) -> list[Handle]:
        """The handles on a pipeline or a model, the oldest first. On a model are also those of its pipelines, on a combined
        pipeline those of the pipelines that it calls."""
        model = model_in(target) or unwrap(target)
        if isinstance(model, nn.Module):
            return [user for user in Denoiser.users_of(model) if isinstance(user, cls)]
        handles = [watcher(pipe) for pipe in (stages_of(target) or {"": target}).values()]
        return [handle for handle in handles if isinstance(handle, cls)]

    @classmethod
    def _own_of(cls, target: Any) -> Handle | None:
        """The handle that was made for ``target`` itself."""
        of_pipeline = model_in(target) is None
        if of_pipeline:
            handle = watcher(target)
            return handle if isinstance(handle, cls) else None
        return next((handle for handle in cls.on(target) if handle._of_pipeline == of_pipeline), None)

    @property
    def target(self) -> Any:
        """What it is attached to; ``None`` if that is a pipeline that was freed. A handle keeps no pipeline alive."""
        return self._target.get()

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        """Its models, each with its blocks; none where it is detached, and no other handle is on them."""
        return tuple([denoiser for held, _ in self._held if (denoiser := held.get()) is not None])

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The same without what was put around them.

        Raises:
            RunError: they are gone.
        """
        return tuple([held.need("module") for _, held in self._held])

    def loosen(self) -> None:
        for held in (self._target, *(held for both in self._held for held in both)):
            held.loosen()

    @property
    def _pipe(self) -> Any:
        """The pipeline; ``None`` for a model by itself, and where the pipeline was freed."""
        return self._target.get() if self._of_pipeline else None

    @property
    def takes_strays(self) -> bool:
        """Whether calls from nowhere known are a loop of the user's: those of a pipeline's model are not."""
        return not self._of_pipeline

    @property
    def module(self) -> nn.Module:
        """The model attached to, of a pipeline its first denoiser. A handle that is detached keeps it no longer."""
        return self.modules[0]

    @property
    def stack(self) -> BlockStack:
        """The blocks that are bypassed in it."""
        return self._held[0][0].need("stack").stack

    @property
    def scope(self) -> str:
        """What a skip leaves out: ``"stack"``, or ``"model"`` where that was asked for or no stack can be separated."""
        return self._scope

    @property
    def residuals_held(self) -> int:
        """Residuals held for the run under way here: one per stream, two where a forecast needs them, none after it."""
        driver = self.driver.get()
        return 0 if driver is None or driver.run is None else driver.run.residuals_held

    def detach(self) -> None:
        """Leave everything as it was before; calling it again does nothing.

        Raises:
            RunError: a run is under way, here or in another thread.
        """
        super().detach()
        for driver in self.driver.everywhere():  # loops without an end
            driver.close()

    @property
    def runs(self) -> Sequence[HostRun]:
        driver = self.driver.get()
        return self._last if driver is None or driver.run is None else driver.runs

    def provenance(self) -> Mapping[str, Any]:
        return provenance(self._pipe, self.modules)

    def conditions(self) -> Mapping[str, Any]:
        return conditions(self._pipe)

    @property
    def identity(self) -> ModelIdentity:
        return identity(self._pipe, self.modules)

    @contextmanager
    def open_run(self, steps: int | None, sigmas: Sequence[float] | None, start: int) -> Iterator[None]:
        if isinstance(self.driver.get(), (GivenRun, PipelineCall)):
            raise RunError("run(): a run is under way here; leave its with block first")
        with self.under_way(), self._driven_by(GivenRun(self._asked, self.warn, steps, sigmas, start, self._learner)):
            yield

    def try_go_to(self, step: int) -> bool:
        driver = self.driver.get()
        if not isinstance(driver, GivenRun):
            return False
        driver.go_to(step)
        return True

    @contextmanager
    def _driven_by(self, driver: RunDriver) -> Iterator[None]:
        if isinstance(own := self.driver.get(), OwnLoop):
            own.close()  # a loop without end: what comes now is another one
        with self.driver.set(driver):
            try:
                yield
            except BaseException:
                driver.failed()
                raise
            finally:
                try:
                    driver.close()
                finally:
                    with self._lock:
                        self._last = driver.runs

    def _call(self, call: partial[Any]) -> Any:
        """In place of each call of the pipeline."""
        if isinstance(self.driver.get(), PipelineCall):  # a subclass calls its parent's
            return call()
        modules = denoisers_of(self._pipe)
        strange = [name for name in self._names if modules.get(name) not in self.modules]
        if strange:
            self.warn(f"{', '.join(strange)} of {type(self._pipe).__name__} is not what was attached to; attach again")
        driver = PipelineCall(self._asked, self.warn, self._pipe, self._boundary(), self._learner)
        with self.under_way(), self._driven_by(driver):
            result = with_callbacks(call, driver.aside)()
        if not driver.called and (wrapped := wrapped_in(self._pipe)):
            self.warn(
                f"{', '.join(wrapped)} of {self._kind} wraps a model that was not called as a module, so nothing is skipped; "
                "have the wrapper call the model itself and not its forward, or hand the model to the pipeline"
            )
        return result

    def _asked(self) -> AttachRequest:
        return self.request

    def stray(self, denoiser: Denoiser) -> OwnLoop | None:
        """What drives calls that come from nowhere known; ``None`` where a pipeline is attached, whose calls alone are runs."""
        if self._of_pipeline:
            again = "" if self._pipe is None or is_watched(type(self._pipe)) else _PUT_BACK.format(self._kind)
            self.warn(
                f"{denoiser.name} was called by something else than the {self._kind} that is attached, so nothing is skipped; "
                f"attach to what calls it too, or call it inside 'with handle.run(steps=28):'{again}",
                once=True,
            )
            return None
        driver = OwnLoop(self._asked, self.warn, began=self._began, learner=self._learner)
        self.driver.keep(driver)
        return driver

    def _began(self, driver: RunDriver) -> None:
        self._last = driver.runs

    def _boundary(self) -> float | None:
        """Where the second expert takes over, as a share of pure noise (Wan2.2's ``boundary_ratio``)."""
        share = getattr(getattr(self._pipe, "config", None), "boundary_ratio", None)
        return float(share) if share is not None and len(self._held) > 1 else None

    def __repr__(self) -> str:
        return f"<Handle on {self._shown}, {'' if self._attached else 'not '}attached>"
