"""One sampling of ComfyUI under a policy, by the wrappers that ComfyUI calls around its own functions.

A node leaves one wrapper on the model it returns, around the whole sampling. The others are added for one sampling only, and
what skips blocks is on the diffusion model during single calls only: a clone without the node sees the model as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.patcher_extension
from attrs import define, evolve, field
from comfy.patcher_extension import WrappersMP

from magpolicy import AdapterError, ArgumentError, AttachRequest, Calibration, MagPolicyError, RunError
from magpolicy.adapter import Placement, RunConfig, ScheduleSpan, check_fits, place
from magpolicy_comfyui import _dry_run, _model_presets
from magpolicy_comfyui._advice import advice
from magpolicy_comfyui._compile import by_blocks
from magpolicy_comfyui._denoiser import Denoiser
from magpolicy_comfyui._identity import identity_of, remarks_on
from magpolicy_comfyui._learning import Lessons, about, teaches
from magpolicy_comfyui._made import MadeLatents
from magpolicy_comfyui._noise_levels import span_of, steps_of
from magpolicy_comfyui._other_caches import other_cache
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._settings import Settings
from magpolicy_comfyui._sources import SampledModel
from magpolicy_comfyui._streams import StreamNames, evaluated_by, guidance_of
from magpolicy_torch import adapter

if TYPE_CHECKING:
    from magpolicy_comfyui._handle import Handle

KEY = "magpolicy"
log = logging.getLogger("magpolicy")
_FOLLOWS = "this sampler chooses its noise levels by what the model returns, nothing is known of them ahead: all of it computes"
_MORE = "the sampler makes more evaluations than are known of it ahead, or other ones: those compute"
_UNNAMED = "ComfyUI did not say which conditions are in a call: such calls compute"
_AGAIN = "a condition was evaluated again at the same step: such calls compute"
_SHIFTED = "each is taken for the step that it belongs to"
_SHARED = "nothing is learned or measured so: sample once on one device for that"


@define(eq=False)
class Attachment:
    """What a node leaves on a model: the wrapper around a sampling, and what the last sampling did."""

    settings: Settings
    finished: Callable[[Attachment, RunReport], None] | None = None
    """Told of every sampling that came to its end."""
    driver: RunDriver | None = None
    """Of the sampling under way."""
    run_report: RunReport | None = None
    """Of the last sampling."""
    made: MadeLatents = field(factory=MadeLatents)
    """What the last samplings returned."""
    lessons: Lessons = field(factory=Lessons)
    owner: Callable[[], Handle | None] = lambda: None
    """A weak reference to the handle that ``magpolicy.attach`` gave; a node's has none."""

    @property
    def latest(self) -> RunReport | None:
        """Of the sampling under way as far as it has come, or else of the last one."""
        return self.run_report if self.driver is None else self.driver.report()

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        owner = self.owner()  # inside its handle.settings(...), there are others
        settings = self.settings if owner is None else Settings.of_request(owner.request)
        before, driver = self.driver, RunDriver(settings, self.lessons)
        for kind, wrapper in driver.wrappers():
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
        self.driver = driver
        try:
            result = executor(*args, **kwargs)
        except BaseException:
            driver.stop()
            raise
        finally:
            self.driver = before
            driver.close()
            wrappers = guider.model_options["transformer_options"]["wrappers"]
            for kind, _ in driver.wrappers():
                wrappers.get(kind, {}).pop(KEY, None)
            self.run_report = driver.report()
        if self.run_report is not None:
            self.made.add(result, self.run_report)
            if self.finished is not None:
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


class HostRun(adapter.HostRun):
    """The run of one sampling.

    Args:
        request: what was asked, for this run.
        placed: the run as its settings see it. Its session begins here.
        span: where the run lies on the noise schedule.
        lesson: learns from it.
    """

    def __init__(self, request: AttachRequest, placed: Placement, span: ScheduleSpan, lesson: adapter.Lesson | None) -> None:
        first = placed.first
        before = span.first - first  # evaluations of the whole schedule that the session does not count
        levels = span.whole(span.flow)[before:]
        super().__init__(request, placed.session(request.safeguard), first, levels, lesson, first + placed.count)
        self.placed, self.span, self.first = placed, span, first

    def beside(self) -> HostRun:
        """A run of the same sampling on another device, which evaluates other conditions there at the same time."""
        if self.lesson is not None:
            self.lesson.drop()  # of each condition alone, nothing is learned of their difference
        return HostRun(self._request, self.placed, self.span, None)

    def calibration(self, provenance: Mapping[str, Any]) -> Calibration:
        """What it measured, also of a part of a schedule.

        Raises:
            RunError: the run was not finished, or the model's blocks could not be followed.
            ArgumentError: the residuals make none.
        """
        moments = self.moments
        if moments is None or moments.stopped:
            raise RunError("the run was not finished")
        if self.unsupported:
            raise RunError("the model's blocks could not be followed")
        levels = [self.span.flow[step - self.first] for step in moments.steps]
        return moments.calibration(levels, self.about(provenance))


@define(eq=False)
class RunDriver:
    """Says where in a run a sampler stands, and which calls of the model belong to it."""

    settings: Settings
    lessons: Lessons = field(factory=Lessons)
    """Of what it is attached by."""
    run: HostRun | None = None
    """Once the sampler has begun; none where nothing is evaluated under a policy."""
    _by_device: dict[Any, HostRun] = field(factory=dict)
    """Where the conditions are split over several devices, whose threads evaluate them at once: the run of each device, of
    which one is :attr:`run`. A device decides for itself, as it would in calls one after the other."""
    _lock: Any = field(factory=threading.Lock)
    notes: list[str] = field(factory=list)
    """What a reader of the report should know."""
    source: str = ""
    """The preset that decides, by name."""
    model: SampledModel | None = None
    """What was found out of the model, where no preset was set."""
    _choice: tuple[str, ...] = ()
    """What is to be said of the calibration that was found for the model, or passed over."""
    _conditions: Mapping[str, Any] = field(factory=dict)
    """How the run is made, by the names that a calibration notes; a value of ``None`` is not known."""
    _computes: str = ""
    """Why every call computes from now on; empty if not all do."""
    _streams: StreamNames = field(factory=StreamNames)
    _place: _dry_run.Place = field(factory=lambda: _dry_run.Place(_dry_run.Evaluations((), ())))
    """Which of the evaluations that the sampler is expected to make each one is."""
    _at: int | None = None
    """The one under way; ``None``: none of them is."""
    _made: int = 0
    """Evaluations that were begun."""
    _wrapped: bool = False
    """Whether evaluations come through the wrapper around them. Guiders that are called in their own way leave it out: there,
    a call at another noise level begins one, or of a condition that was called already."""
    _sigma: float = 0.0
    """Noise level of the last one."""
    _other: str = ""
    """Why every call computes because of another cache on the model; empty if there is none."""
    _denoisers: list[Denoiser] = field(factory=list)

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
        count = _dry_run.StepCount()
        if args:
            args = (count.before(args[0]), *args[1:])
        else:
            kwargs["callback"] = count.before(kwargs.get("callback"))
        try:
            self._begin(executor.class_obj, guider, sigmas, extra_args.get("seed"), noise)
            self._place.count = count
        except MagPolicyError as error:  # the picture is worth more than the speed
            self._say(f"every step computes: {error}")
        except Exception as error:  # a fault of ours is no reason to lose it either
            log.exception("magpolicy: a fault of its own, please report it")
            self._say(f"every step computes: {type(error).__name__}: {error}")
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    def _begin(self, sampler: Any, guider: Any, sigmas: Any, seed: Any, noise: Any) -> None:
        if len(sigmas) < 2:
            return
        expected = _dry_run.dry_run(sampler, guider, sigmas, seed, noise.ndim)
        self._place, levels = _dry_run.Place(expected), expected.sigmas
        steps = [float(s) for s in sigmas]
        if not (expected.known or expected.follows) and len(steps) > 2:
            self.notes.append("this sampler's evaluations are not known ahead; one a step is assumed")
        self._other = other_cache(guider.model_options)
        span = span_of(levels, steps, guider.inner_model.model_sampling)
        source = self._chosen(guider, span, noise.shape)
        settings = self.settings
        self._streams = StreamNames(guider.conds)
        self._conditions = {"guidance": guidance_of(guider)}
        request = settings.request(settings.config(source, span, steps_of(levels, steps)))
        kind = type(guider.inner_model).__name__
        check_fits(request.config.given, [kind], host="ComfyUI", roles=adapter.StreamNamer.roles)
        lesson = self._lesson(request, guider, span)
        request = request if lesson is None else lesson.request
        config = request.config.with_streams(self._streams.bases).with_guidance(guidance_of(guider))
        placed = place(config, span)
        self.run = HostRun(evolve(request, config=placed.config), placed, span, lesson)
        self.source = "calibration" if settings.calibrate else _name(placed.config, source)
        if settings.finds_its_source:
            self._choice = remarks_on(identity_of(guider.model_patcher), config, span, in_a_node=settings.given is None)

    def _lesson(self, request: AttachRequest, guider: Any, span: ScheduleSpan) -> adapter.Lesson | None:
        if not teaches(request):
            return None
        known = None if self.model is None else self.model.identity
        identity = known or identity_of(guider.model_patcher)
        return self.lessons.next(request, identity, evaluated_by(guider), whole=not span.partial, steps=span.steps)

    def _chosen(self, guider: Any, span: ScheduleSpan, shape: Sequence[int]) -> Any:
        """What decides is made from this: what was set, or what fits the model and this run; ``None``: nothing is known.

        If nothing is known, but the rule was to decide, the run is planned, and the report says so.
        """
        settings, source = self.settings, self.settings.source
        if settings.calibrate or (source is None and settings.given is None):
            preset = _model_presets.for_run(guider.inner_model, guider.conds, span, shape)
            self.model = SampledModel.sampled_by(guider, preset)
        if self.model is not None and not settings.calibrate:
            source = self.model.for_rule() if settings.needs_table else self.model.for_plan(span)
            if source is None and settings.needs_table:
                self.settings = settings.without_table()
                self._say(_model_presets.unknown(type(guider.inner_model).__name__))
            return source
        if settings.follow_steps and getattr(source, "name", None):
            source = _model_presets.longer(source.name, span.steps)
        return source

    def _predict(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one evaluation of all conditions."""
        if self.run is None:
            return executor(x, timestep, *args, **kwargs)
        self._wrapped = True
        self._evaluates(float(timestep.max()))
        try:
            return executor(x, timestep, *args, **kwargs)
        finally:
            self._at = None

    def _is_next(self, sigma: float, streams: Sequence[str] | None) -> bool:
        """Whether a call begins an evaluation, where no wrapper says so."""
        return not self._made or sigma != self._sigma or any(", again" in stream for stream in streams or ())

    def _evaluates(self, sigma: float) -> None:
        """The next evaluation begins, at this noise level."""
        self._streams.begin_step()
        self._made += 1
        self._sigma = sigma
        self._at = self._place.of(sigma)
        if self._at is not None:
            for run in self._runs:
                run.go_to(run.first + self._at)

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

        if self.run is None:
            return call()
        with self._lock:
            streams = self._streams.of(options, x.shape[0])
            if not self._wrapped and self._is_next(sigma := float(t.max()), streams):
                self._evaluates(sigma)
                streams = self._streams.of(options, x.shape[0])
            run = self._run_on(options.get("multigpu_thread_device"), self.run)
        if why := self._unplaced(run, streams):
            return self._compute(run, streams, call, why)
        assert streams is not None
        with by_blocks(executor.class_obj):
            with self._lock:
                denoiser = self._denoiser_of(executor.class_obj)
            if denoiser is None:
                return self._compute(run, streams, call, self._computes)
            if denoiser.busy:
                return call()
            return denoiser.evaluate(run, streams, call, self._other)

    def _unplaced(self, run: HostRun, streams: Sequence[str] | None) -> str:
        """Why a call that is made now has no place in the run, in words; empty if it has one."""
        if self._computes:
            return self._computes
        if self._place.expected.follows:
            return _FOLLOWS
        if self._at is None:
            return _MORE
        if streams is None:
            return _UNNAMED
        return _AGAIN if any(run.session.step(stream) > run.step for stream in streams) else ""

    def _compute(self, run: HostRun, streams: Sequence[str] | None, call: Callable[[], Any], why: str) -> Any:
        return run.compute(streams or ("cond",), call, evaluation=self._made, sigma=self._sigma, why=why)

    @property
    def _runs(self) -> Sequence[HostRun]:
        return tuple(self._by_device.values()) or (() if self.run is None else (self.run,))

    def _run_on(self, device: Any, run: HostRun) -> HostRun:
        """The run of a device; ``run`` of the first one, and where ComfyUI names none."""
        if device is None:
            return run
        if device not in self._by_device:
            self._by_device[device] = run.beside() if self._by_device else run
            self._by_device[device].go_to(run.step)
        return self._by_device[device]

    def _denoiser_of(self, model: Any) -> Denoiser | None:
        """The diffusion model as it stands now; ``None`` if its blocks cannot be told."""
        module = model.diffusion_model
        for denoiser in self._denoisers:
            if denoiser.module is module and denoiser.current:
                return denoiser
        try:
            denoiser = Denoiser(module, model.latent_format.latent_channels)
        except AdapterError as error:
            self._computes = f"every step computes: {error}"
            log.warning("magpolicy: %s", self._computes)
            return None
        self._denoisers.append(denoiser)
        return denoiser

    def stop(self) -> None:
        """The sampling raised: half a calibration is none."""
        for run in self._runs:
            run.stop()

    def close(self) -> None:
        """End the run, and free its residuals."""
        for run in self._runs:
            try:
                run.end()
            except Exception as error:  # the picture is made
                log.exception("magpolicy: a fault of its own, please report it")
                self.notes.append(f"nothing was learned: {type(error).__name__}: {error}")
            if run.in_vain:
                log.warning("magpolicy: %s", run.in_vain)  # the report says it already
        if len(self._by_device) > 1:
            self.notes.append(f"{len(self._by_device)} devices shared the conditions; {_SHARED}")
        if self._place.shifted:
            self.notes.append(
                f"the model was told another noise level than the sampler's list {self._place.shifted} times; {_SHIFTED}"
            )

    def report(self) -> RunReport | None:
        """What was done so far; ``None`` if nothing was evaluated under a policy."""
        run, runs = self.run, [run for run in self._runs if run.evaluated]
        if run is None or not runs:
            return None
        report = adapter.Report.together([each.report for each in runs], run.session.schedule)
        remarks = (*run.differences(self._conditions), *self._choice)
        told = advice(self.settings, run.session.config)
        report = evolve(report, advice=told, problems=(*report.problems, *remarks))
        held = sum(each.residuals_held for each in runs)
        made = RunReport(report, run.span, self.source, list(self.notes), residuals_held=held, model=self.model)
        if self.settings.calibrate:
            try:
                known = {name: value for name, value in self._conditions.items() if value is not None}
                if len(runs) > 1:
                    raise RunError(_SHARED)
                made.measured = run.calibration(about(None if self.model is None else self.model.identity) | known)
            except (ArgumentError, RunError) as error:
                made.problem = str(error)
        return made

    def _say(self, what: str) -> None:
        log.warning("magpolicy: %s", what)
        self.notes.append(what)


def _name(config: RunConfig, source: Any) -> str:
    """The name of what decides."""
    if config.given is None:
        return "the general prior" if config.schedules else "in full"
    served = config.preset or config.given  # of several presets by a name, the one that serves
    return getattr(served, "name", "") or (source if isinstance(source, str) else type(served).__name__)
