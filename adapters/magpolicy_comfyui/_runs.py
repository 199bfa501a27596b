"""One sampling of ComfyUI under a policy, by the wrappers that ComfyUI calls around its own functions.

A node leaves one wrapper on the model it returns, around the whole sampling. The others are added for one sampling only, and
what skips blocks is on the diffusion model during single calls only: a clone without the node sees the model as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import comfy.patcher_extension
from attrs import define, field
from comfy.patcher_extension import WrappersMP

from magpolicy import AdapterError, ArgumentError, Calibration, MagPolicyError, Session
from magpolicy.adapter import RunConfig
from magpolicy_comfyui import _dry_run, _model_presets, _noise_levels
from magpolicy_comfyui._compile import by_blocks
from magpolicy_comfyui._denoiser import Denoiser
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._settings import Settings, length_of, with_streams
from magpolicy_comfyui._streams import StreamNames
from magpolicy_torch.adapter import Moments, Record, Report, ResidualStore, Run, versions

KEY = "magpolicy"
log = logging.getLogger("magpolicy")


@define(eq=False)
class Attachment:
    """What a node leaves on a model: the wrapper around a sampling, and what the last sampling did."""

    settings: Settings
    finished: Callable[[Attachment, RunReport], None] | None = None
    """Told of every sampling that came to its end."""
    run: HostRun | None = None
    """The sampling under way."""
    run_report: RunReport | None = None
    """Of the last sampling."""

    @property
    def latest(self) -> RunReport | None:
        """Of the sampling under way as far as it has come, or else of the last one."""
        return self.run_report if self.run is None else self.run.report()

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        before, run = self.run, HostRun(self.settings)
        for kind, wrapper in run.wrappers():
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        self.run = run
        try:
            result = executor(*args, **kwargs)
        except BaseException:
            run.moments = None  # half a calibration is none
            raise
        finally:
            self.run = before
            run.end()
            wrappers = guider.model_options["transformer_options"]["wrappers"]
            for kind, _ in run.wrappers():
                wrappers.get(kind, {}).pop(KEY, None)
            self.run_report = run.report()
        if self.finished is not None and self.run_report is not None:
            self.finished(self, self.run_report)
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
    span: _noise_levels.ScheduleSpan | None = None
    streams: StreamNames = field(factory=StreamNames)
    record: Record = field(factory=Record)
    moments: Moments | None = None
    """What is measured, if this is a calibration."""
    notes: list[str] = field(factory=list)
    """What a reader of the report should know."""
    scope: str = "stack"
    """What a skip leaves out: the block ``"stack"``, or the whole ``"model"``."""
    _source: Any = None
    _config: RunConfig | None = None
    _levels: Sequence[float] = ()
    """The sigma of each evaluation that the sampler is expected to make."""
    _first: int = 0
    """Position of the first of them in the session."""
    _next: int = 0
    """The first of them that is still to come."""
    _at: int | None = None
    """The one under way; ``None``: none of them is."""
    _denoisers: list[tuple[Denoiser, Run]] = field(factory=list)
    _unexpected: int = 0

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
        settings = self.settings
        self._levels, known = _dry_run.dry_run(sampler, guider, sigmas, seed, noise.ndim)
        steps = [float(s) for s in sigmas]
        if not known and len(steps) > 2:
            self.notes.append("this sampler's evaluations are not known ahead; one a step is assumed")
        self.span = span = _noise_levels.span_of(self._levels, steps, guider.inner_model.model_sampling)
        self._source = self._chosen(guider, span, noise.shape)
        self.streams = StreamNames(guider.conds)
        config = settings.config(self._source, span, _noise_levels.steps_of(self._levels, steps))
        self._config = config = with_streams(config, self.streams.bases)
        length, levels, self._first = length_of(config, span)
        self.session = Session.from_setup(config, length, levels, settings.safeguard)
        self.session.begin(self._first)
        if settings.calibrate:
            self.moments = Moments.of_run(
                self.session.steps, window=settings.window, tokens=settings.tokens, offload=settings.offload
            )

    def _chosen(self, guider: Any, span: _noise_levels.ScheduleSpan, shape: Sequence[int]) -> Any:
        """The source of the ratios: what was set, or what fits the model and this run."""
        source = self.settings.source
        if source is None and not self.settings.calibrate:
            source = _model_presets.for_run(guider.inner_model, guider.conds, span, shape)
        if self.settings.follow_steps and getattr(source, "name", None):
            source = _model_presets.longer(source.name, span.steps)
        return source

    def _predict(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one evaluation of all conditions."""
        if self.session is None:
            return executor(x, timestep, *args, **kwargs)
        self.streams.begin_step()
        self._at = _dry_run.matches(self._levels, self._next, float(timestep.max()))
        if self._at is None:
            self._unexpected += 1
        else:
            self._next = self._at + 1
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            self._at = None

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

        def call() -> Any:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        session, at = self.session, self._at
        if session is None or at is None:
            return call()
        names = self.streams.of(options, x.shape[0])
        if names is None:
            return call()
        with by_blocks(executor.class_obj):
            found = self._run_on(executor.class_obj)
            step = self._first + at
            if found is None or found[0].busy or any(session.step(name) > step for name in names):
                return call()
            denoiser, run = found
            return denoiser.evaluate(run, names, call, step)

    def _run_on(self, model: Any) -> tuple[Denoiser, Run] | None:
        """What is skipped of the model as it stands now; ``None`` if it cannot be told."""
        module, settings = model.diffusion_model, self.settings
        for denoiser, run in self._denoisers:
            if denoiser.module is module and denoiser.current:
                return denoiser, run
        try:
            denoiser = Denoiser(module, model.latent_format.latent_channels)
        except AdapterError as error:
            self._say(f"every step computes: {error}")
            self.session = None
            return None
        assert self.session is not None
        store = ResidualStore(settings.offload, settings.storage_dtype)
        run = Run(denoiser.stack, self.session, store, self.moments, denoiser.channel_dim, self.record)
        self._denoisers.append((denoiser, run))
        self.scope = denoiser.scope
        return denoiser, run

    def end(self) -> None:
        """Over, in good order or not: nothing is held any more."""
        for _, run in self._denoisers:
            run.free()
        if self.session is not None:
            self.session.end()
        if self._unexpected:
            self.notes.append(f"{self._unexpected} evaluations at other noise levels than the sampler's list; they computed")

    @property
    def residuals_held(self) -> int:
        """Residuals held now."""
        return sum(run.store.count for _, run in self._denoisers)

    def report(self) -> RunReport | None:
        """What was done so far; ``None`` if nothing was evaluated under a policy."""
        session, span = self.session, self.span
        if session is None or span is None or not session.trace:
            return None
        calibration, problem = self._measured(span) if self.settings.calibrate else (None, "")
        report = Report.of(session, self.record, self.scope)
        return RunReport(report, span, self._source_name, list(self.notes), calibration, problem)

    @property
    def _source_name(self) -> str:
        if self.settings.calibrate:
            return "calibration"
        preset = None if self._config is None else self._config.preset  # of several by a name, the one that served
        source = self._source
        return getattr(preset or source, "name", "") or (source if isinstance(source, str) else type(source).__name__)

    def _measured(self, span: _noise_levels.ScheduleSpan) -> tuple[Calibration | None, str]:
        """The calibration, or why there is none."""
        if self.moments is None:
            return None, "the run was not finished"
        if any(run.unsupported for _, run in self._denoisers):
            return None, "the model's blocks could not be followed"
        try:
            levels = [span.flow[step - self._first] for step in self.moments.steps]
            about = {"versions": versions(), "host": "ComfyUI", "scope": self.scope}
            return self.moments.calibration(levels, about), ""
        except ArgumentError as error:
            return None, str(error)

    def _say(self, what: str) -> None:
        log.warning("magpolicy: %s", what)
        self.notes.append(what)
