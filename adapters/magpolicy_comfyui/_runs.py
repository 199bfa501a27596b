"""One sampling of ComfyUI under a policy, by the wrappers that ComfyUI calls around its own functions.

A node leaves one wrapper on the model it returns, around the whole sampling. The others are added for one sampling only, and
what skips blocks is on the diffusion model during single calls only: a clone without the node sees the model as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
from attrs import define, field
from comfy.patcher_extension import WrappersMP
from magpolicy_torch.evaluation._call import evaluate

from magpolicy import AdapterError, MagPolicyError, Session, adapter
from magpolicy_comfyui import _dry_run, _model_presets, _noise_levels
from magpolicy_comfyui._block_stacks import Bypass
from magpolicy_comfyui._compiled_blocks import by_blocks
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui._streams import StreamNames
from magpolicy_torch.evaluation._run import Run
from magpolicy_torch.host._report import Record
from magpolicy_torch.residuals._moments import Moments
from magpolicy_torch.residuals._store import ResidualStore

KEY = "magpolicy"
log = logging.getLogger("magpolicy")


@define(eq=False)
class Attachment:
    """What a node leaves on a model: the wrapper around a sampling, and the outcome of the last one."""

    settings: Settings
    finished: Callable[[Attachment, RunReport], None] | None = None
    """Told of every sampling that came to its end."""
    outcome: RunReport | None = None

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        run = HostRun(self.settings)
        for kind, wrapper in run.wrappers():
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        try:
            result = executor(*args, **kwargs)
        except BaseException:
            run.moments = None  # half a calibration is none
            raise
        finally:
            run.end()
            wrappers = guider.model_options["transformer_options"]["wrappers"]
            for kind, _ in run.wrappers():
                wrappers.get(kind, {}).pop(KEY, None)
            self.outcome = run.outcome()
        if self.finished is not None and self.outcome is not None:
            self.finished(self, self.outcome)
        return result


def attach(patcher: Any, attachment: Attachment) -> None:
    """Put ``attachment`` on a ModelPatcher, in the place of one that is there."""
    detach(patcher)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, attachment)


def detach(patcher: Any) -> None:
    """Take it off again."""
    patcher.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)


def attached(patcher: Any) -> Attachment | None:
    """What a node left on a ModelPatcher, or on the one it is a clone of."""
    found = patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return next((wrapper for wrapper in found if isinstance(wrapper, Attachment)), None)


@define(eq=False)
class HostRun:
    """One sampling: a session, and where in it the sampler stands."""

    settings: Settings
    session: Session | None = None
    place: adapter.ScheduleSpan | None = None
    streams: StreamNames = field(factory=StreamNames)
    record: Record = field(factory=Record)
    moments: Moments | None = None
    """What is measured, if this is a calibration."""
    notes: list[str] = field(factory=list)
    """What a reader of the report should know."""
    _planned: list[float] = field(factory=list)
    _first: int = 0
    _next: int = 0
    _position: int | None = None
    _runs: list[tuple[Bypass, Run]] = field(factory=list)
    _unplanned: int = 0
    _source: Any = None
    _scope: str = "stack"

    def wrappers(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        """The wrappers of this sampling. Added last, they are the innermost of their kind."""
        return (
            (WrappersMP.SAMPLER_SAMPLE, self._sample),
            (WrappersMP.PREDICT_NOISE, self._predict),
            (WrappersMP.APPLY_MODEL, self._apply),
        )

    def _sample(self, executor: Any, guider: Any, sigmas: Any, extra_args: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the sampler: its noise levels are known, nothing is evaluated yet."""
        noise = kwargs["noise"] if "noise" in kwargs else args[1]
        try:
            self._begin(executor.class_obj, guider, sigmas, extra_args.get("seed"), noise)
        except MagPolicyError as error:  # the picture is worth more than the speed
            self._say(f"every step computes: {error}")
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    def _begin(self, sampler: Any, guider: Any, sigmas: Any, seed: Any, noise: Any) -> None:
        if len(sigmas) < 2:
            return
        self._planned, known = _dry_run.rehearse(sampler, guider, sigmas, seed, noise.ndim)
        levels = [float(s) for s in sigmas]
        self.place = place = _noise_levels.place(self._planned, levels, guider.inner_model.model_sampling)
        if not known and len(levels) > 2:
            self.notes.append("this sampler's evaluations are not known ahead; one a step is assumed")
        settings = self.settings
        self._source = settings.source
        if self._source is None and not settings.calibrate:
            self._source = _model_presets.for_run(guider.inner_model, guider.conds, place, noise.shape)
        if settings.follow_steps and getattr(self._source, "name", None):
            self._source = _model_presets.longer(self._source.name, place.steps)
        config = settings.config(self._source, place, _noise_levels.steps_of(self._planned, levels))
        self.streams = StreamNames.of(guider.conds)
        placed = adapter.place(config.with_streams(self.streams.bases), place)
        self.session = placed.session(settings.safeguard)
        self.session.begin(placed.first)
        if settings.calibrate:
            self.moments = Moments.of_run(
                self.session.steps, window=settings.window, tokens=settings.tokens, offload=settings.offload
            )
        self._first = placed.first

    def _predict(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one evaluation of all conditions."""
        if self.session is None:
            return executor(x, timestep, *args, **kwargs)
        self.streams.begin_evaluation()
        self._position = _dry_run.matches(self._planned, self._next, float(timestep.max()))
        if self._position is None:
            self._unplanned += 1
        else:
            self._next = self._position + 1
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            self._position = None

    def _apply(
        self,
        executor: Any,
        x: Any,
        t: Any,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Around one call of the model."""
        options = {} if transformer_options is None else transformer_options

        def forward() -> Any:
            # Models take what is in the lists out of them, and this may be called twice.
            given = None if control is None else {k: list(v) if isinstance(v, list) else v for k, v in control.items()}
            return executor(x, t, c_concat, c_crossattn, given, options, **kwargs)

        session, position = self.session, self._position
        if session is None or position is None:
            return forward()
        names = self.streams.called(options, x.shape[0])
        if names is None:
            return forward()
        with by_blocks(executor.class_obj):
            found = self._run_on(executor.class_obj)
            step = self._first + position
            if found is None or found[0].busy or any(session.step(name) > step for name in names):
                return forward()
            bypass, run = found
            with bypass.bound():
                return evaluate(run, names, forward, step=step)

    def _run_on(self, model: Any) -> tuple[Bypass, Run] | None:
        """What is skipped of the model as it stands now; ``None`` if it cannot be told."""
        module = model.diffusion_model
        for bypass, run in self._runs:
            if bypass.module is module and bypass.current:
                return bypass, run
        try:
            bypass = Bypass(module, model.latent_format.latent_channels)
        except AdapterError as error:
            self._say(f"every step computes: {error}")
            self.session = None
            return None
        assert self.session is not None
        settings = self.settings
        store = ResidualStore(settings.offload, settings.storage_dtype)
        run = Run(bypass.stack, self.session, store, self.moments, bypass.channel_dim, self.record)
        self._runs.append((bypass, run))
        self._scope = bypass.stack.scope
        return bypass, run

    def end(self) -> None:
        """Over, in good order or not: nothing is held any more."""
        for _, run in self._runs:
            run.free()
        if self.session is not None:
            self.session.end()

    def outcome(self) -> RunReport | None:
        """What was done, as far as it got; ``None`` if nothing was evaluated."""
        if self._unplanned:
            self.notes.append(f"{self._unplanned} evaluations at other noise levels than the sampler's list; they computed")
        return RunReport.of(self)

    def _say(self, what: str) -> None:
        log.warning("magpolicy: %s", what)
        self.notes.append(what)
