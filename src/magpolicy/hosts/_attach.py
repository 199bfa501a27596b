"""Attaching a policy to somebody's model: settings are checked here, the adapters do the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any

from attrs import evolve, field, frozen

from magpolicy import _checks
from magpolicy._errors import ArgumentError, PresetError
from magpolicy._keywords import suggests
from magpolicy.calibration._calibration import Calibration
from magpolicy.catalog._matching import PresetMatches
from magpolicy.catalog._presets import Preset
from magpolicy.hosts import _dispatch
from magpolicy.planning._safeguard import Safeguard
from magpolicy.policy._curve import Curve
from magpolicy.policy._semantics import Semantics
from magpolicy.run._config import RunConfig
from magpolicy.run._placing import ScheduleSpan, place
from magpolicy.run._resolve import RULE, always_compute, asks_for_the_rule, has_settings, resolve
from magpolicy.run._session import Session
from magpolicy.schedule._file import load_schedule
from magpolicy.schedule._schedule import Schedule

SCOPES = ("stack", "model")
DEFAULT_SPEED = "balanced"
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "preset": ((Preset, Calibration, str, Path, PresetMatches), "a preset's name, alias or file, or a Preset; see presets()"),
    "curve": ((Curve, Calibration), "a Curve; try Curve(ratios)"),
    "calibration": ((Calibration, str, Path), "a Calibration, or the path of one"),
    "schedule": ((Schedule, str, Path), "a Schedule, or the path of one; try Schedule.from_mask(mask)"),
}

_TARGETS = ("speedup", "computed", "error")
_OF_A_RULE = ("rule", "threshold", "max_skips", "retention", "start_step", "end_step", "semantics")
OF_A_RUN = (
    *_TARGETS, *_KINDS, "ratios", *_OF_A_RULE, "forced", "steps", "expert_step", "forecast", "damping", "objective", "guidance",
    "safeguard", "learn", "calibrate", "window", "tokens", "offload", "storage_dtype",
)  # fmt: skip
"""What can differ from run to run."""
_APART = (frozenset(_TARGETS), frozenset({*_KINDS, "ratios", "calibrate"}))
"""Of these one at most is given."""
_ONLY_RULE = frozenset({"rule", "threshold", "start_step", "end_step", "semantics"})
_ONLY_PLAN = frozenset({*_TARGETS, "objective", "guidance", "safeguard"})
_EXCLUDE = (
    (frozenset(_TARGETS), _ONLY_RULE | {"schedule", "calibrate"}),
    (_ONLY_RULE, _ONLY_PLAN | {"schedule", "calibrate", "learn"}),
    (
        frozenset({"schedule", "calibrate"}),
        _ONLY_RULE | _ONLY_PLAN | {"max_skips", "retention", "forced", "expert_step", "learn"},
    ),
)
"""Where one of the first is given anew, the others no longer hold."""


@frozen(kw_only=True)
class AttachRequest:
    """The checked settings of one :func:`magpolicy.attach`, for an adapter."""

    __module__ = "magpolicy"

    config: RunConfig = field(repr=False)
    """What decides in its runs."""
    steps: int | None = None
    """Steps of a run, unless the run says otherwise."""
    blocks: Any = None
    """The blocks to bypass, as the adapter understands it; ``None``: find them."""
    scope: str = "stack"
    """``"stack"``: the residual of the block stack; ``"model"``: of the whole model."""
    offload: str | None = None
    """``"cpu"`` keeps residuals there between uses."""
    storage_dtype: Any = None
    """The dtype residuals are stored in; ``None``: as they come."""
    calibrate: bool = False
    """Compute every step and measure the residuals."""
    window: int | None = None
    """Calibrating: evaluations back that residuals are compared over; ``None``: the adapter's choice."""
    tokens: int | None = 2048
    """Calibrating: tokens that are looked at, at most; ``None``: all."""
    reduce: Callable[[Any], Any] | None = None
    """Calibrating: adds up a tensor of sums over ranks that share the tokens."""
    group: Any = None
    """The ranks that run the model together, as the adapter understands it; ``None``: find them; ``False``: each by itself."""
    safeguard: float | bool | Safeguard | None = None
    """Whether a planned run is compared with its plan: see :class:`magpolicy.Safeguard`."""
    learn: bool | str = False
    """Whether runs are measured, and later ones planned from what they taught; ``"first"``: the first one computes every
    step."""

    arguments: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)
    """The arguments of :func:`magpolicy.attach` that it was made of."""

    @property
    def finds_its_source(self) -> bool:
        """Whether what decides is to be found by the model: no preset, calibration or the like was given."""
        sources = (*_KINDS, "ratios", "calibrate")
        return bool(self.arguments) and all(given is None or given is False for given in map(self.arguments.get, sources))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> AttachRequest:
        """What ``attach(target, **settings)`` would ask of an adapter, before there is a target: for hosts that are told their
        settings when they start.

        Raises:
            ArgumentError: as ``attach``; also where the rule is asked for, and nothing says by which ratios.
        """
        return request_for(None, {**_DEFAULTS, **settings})

    def changed(self, target: Any, changes: Mapping[str, Any]) -> AttachRequest:
        """The same with other settings, as ``attach`` would make it of both. What contradicts a change is left out.

        Args:
            target: what is attached to.
            changes: arguments of :func:`magpolicy.attach`, of those that can differ from run to run.

        Raises:
            ArgumentError: a setting is unknown, out of range, or no matter of a run.
        """
        for name in changes:
            if name not in OF_A_RUN:
                settled = "is settled when a model is attached; attach again" if name in self.arguments else "is not known"
                raise ArgumentError(f"settings({name}=...) {settled}; settings takes {', '.join(OF_A_RUN)}")
        given = {name for name, value in changes.items() if value is not None and value is not False}
        left_out = {other for names in _APART for name in names & given for other in names - {name}}
        for names, others in _EXCLUDE:
            left_out |= others if names & given else set()
        fresh = {"start_step": 0, "calibrate": False, "tokens": 2048}
        kept = {name: fresh.get(name) if name in left_out - given else value for name, value in self.arguments.items()}
        wanted = {name: fresh.get(name) if value is None else value for name, value in changes.items()}
        return evolve(request_for(target, {**kept, **wanted}), group=self.group)

    def length(self, steps: int | None, sigmas: Sequence[float] | None) -> int | None:
        """Evaluations per stream of a run of so many steps, or of these noise levels, if that is known."""
        if steps is not None:
            return steps
        return self.steps if sigmas is None else len(sigmas)

    def session(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Session:
        """A session for one run.

        Args:
            steps: evaluations per stream.
            sigmas: or their noise levels.

        Raises:
            ArgumentError: no number of steps is known, or the settings do not fit it.
        """
        if steps is None and sigmas is None:
            steps = self.steps
        if steps is None and sigmas is None and (self.config.given is None or self.config.preset is not None):
            raise ArgumentError("steps=None: how long is the run? try handle.run(steps=28)")
        return Session.from_config(self.config, steps, sigmas, self.safeguard)

    def session_over(self, span: ScheduleSpan, *, guidance: float | None = None) -> Session:
        """A session for the run that covers ``span``, to be begun where :func:`magpolicy.adapter.place` says.

        Args:
            span: the run's evaluations, as the host knows them.
            guidance: the run's guidance scale, for a plan, where the host knows it and the settings do not say.

        Raises:
            ArgumentError: the settings do not fit the run.
        """
        return place(self.config.with_guidance(guidance), span).session(self.safeguard)


@suggests
def attach(
    target: Any,
    *,
    preset: Preset | Calibration | str | Path | None = None,
    ratios: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    curve: Curve | Calibration | None = None,
    calibration: Calibration | str | Path | None = None,
    schedule: Schedule | str | Path | None = None,
    rule: str | None = None,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    forced: Iterable[int] | None = None,
    steps: int | None = None,
    semantics: str | Semantics | None = None,
    expert_step: int | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    speedup: float | str | None = None,
    computed: int | None = None,
    error: float | None = None,
    objective: str | None = None,
    guidance: float | Mapping[str, float] | None = None,
    safeguard: float | bool | Safeguard | None = None,
    blocks: Any = None,
    scope: str = "stack",
    offload: str | None = None,
    storage_dtype: Any = None,
    learn: bool | str | None = None,
    calibrate: bool = False,
    window: int | None = None,
    tokens: int | None = 2048,
    reduce: Callable[[Any], Any] | None = None,
    group: Any = None,
) -> Any:
    """Attach a policy to a model, and return a handle.

    The first installed adapter that can drive ``target`` does it. ``attach(target)`` alone plans each run for half of its
    steps (``speedup="balanced"``), whatever the model: by the user's calibration of it, else by its published table, else by
    what flow models have in common. ``speedup``, ``computed`` and ``error`` plan for something else; ``rule="published"`` and
    the settings of :func:`magpolicy.simulate` apply the rule instead.

    A run that does not fit the settings, such as one too short for its target, goes by what is nearest to them, and a
    :class:`magpolicy.PlanWarning` says so once.

    Args:
        target: a diffusers pipeline or model, a ``torch.nn.Module``, or an object of another installed adapter.
        preset: a preset or its name, alias or file; by default the one that the adapter chooses for ``target``. If the user has
            a calibration of this model beside a published table, plans use the calibration, and the rule uses the table;
            ``report.source`` says which. Given without more, a preset decides as published, by the rule; a calibration plans.
        ratios: one ratio a step, or a mapping from stream to such.
        curve: a calibrated curve.
        calibration: a calibration, or the path of one.
        schedule: a schedule to follow, or the path of one. It is stretched over a run of another number of steps, without its
            forecasts.
        rule: ``"published"``: the rule decides, with the settings that were published for the model.
        steps: steps of a run, if the host does not say them (a pipeline's scheduler does); ``run(steps=...)`` overrides it.
        forecast: ``"hold"``, ``"linear"``, ``"calibrated"`` (two residuals a stream) or, of a run that is planned,
            ``"second-order"`` (three); by default that of the plan or schedule, else hold.
        damping: factor on the linear forecast, 0 to 1.
        speedup: plan each run for this speedup, in evaluations over computed ones, instead of applying the rule, as in
            ``attach(pipe, speedup=2.0)`` or ``speedup="balanced"``; see :func:`magpolicy.plan`, also for the next four.
        computed: or for this number of computed steps.
        error: or for a bound on the expected relative error of every skipped step.
        objective: what the plan minimizes.
        guidance: the guidance scale, if the calibration does not say it.
        safeguard: ``True``, or a margin: compare the run with its plan at computed steps, and plan the rest again when it is
            off by more (twice the expected error by default). Takes memory for two residuals a stream.
        blocks: the block stack; by default the lists of blocks under the usual names.
        scope: ``"stack"`` skips the block stack, ``"model"`` the whole model (U-Nets, black boxes).
        offload: ``"cpu"`` keeps residuals in CPU memory between uses.
        storage_dtype: dtype to store residuals in.
        learn: measure runs as they are made, keep what they teach in the user's folder, and plan later runs from it, also those
            of another process. ``"first"``: a first run computes every step, which teaches most. By default runs are measured
            if they are planned and no source is given; ``False`` measures and writes nothing.
        calibrate: compute every step and measure the residuals, for ``handle.calibration`` and ``handle.curve``. Where each
            rank evaluates one branch of guidance, :meth:`Calibration.merge` and ``magpolicy_torch.joint_calibration`` make one
            calibration of both.
        window: while calibrating, take inner products with residuals up to this many evaluations back, and hold that many per
            stream; by default all of the run, or a hundred.
        tokens: while calibrating, use this many tokens at most, chosen at random once; ``None`` uses all.
        reduce: while calibrating, in place of ``group``: a function that adds a tensor over the ranks that share the tokens,
            in place or as its result, such as ``torch.distributed.all_reduce``. Every rank then has to read
            ``handle.calibration``.
        group: the processes that run the model together and so have to decide alike: a process group or a device mesh of
            ``torch.distributed``, or ``False`` where this one is by itself. By default those that the model's weights are
            sharded over (FSDP, DTensor), or its tokens (context parallelism of diffusers). Every one of them attaches with the
            same settings, and makes the same runs; see "Several devices" in the documentation.

    Returns:
        The adapter's handle: ``.run(steps=...)``, ``.stream(name)``, ``.report``, ``.detach()``, and a context manager.

    Raises:
        ArgumentError: a setting is missing, unknown or out of range. Nothing was patched.
        AdapterError: no installed adapter can drive ``target``, or it does not denoise, as an autoencoder. Nothing was patched.
    """
    arguments = {name: value for name, value in locals().items() if name != "target"}
    return _dispatch.attach(target, request_for(target, arguments))


def request_for(target: Any, arguments: Mapping[str, Any]) -> AttachRequest:
    """What :func:`attach` asks of an adapter, for these arguments of it.

    Raises:
        ArgumentError: as :func:`attach`.
    """
    asked = SimpleNamespace(**arguments)
    sources: dict[str, Any] = {
        "preset": asked.preset,
        "ratios": asked.ratios,
        "curve": asked.curve,
        "calibration": asked.calibration,
        "schedule": asked.schedule,
    }
    given = {name: value for name, value in sources.items() if value is not None}
    _checks.one_of("calibrate", asked.calibrate, (False, True))
    _checks.one_of("rule", asked.rule, (None, "published"))
    _checks.one_of("learn", asked.learn, (None, True, False, "first"))
    if len(given) + bool(asked.calibrate) > 1:
        names = ", ".join([*given, *(["calibrate"] if asked.calibrate else [])])
        raise ArgumentError(f"{names} given: pass one of preset, ratios, curve, calibration, schedule or calibrate=True")
    for name, (kinds, meant) in _KINDS.items():
        if not isinstance(given.get(name), (*kinds, NoneType)):
            raise ArgumentError(f"{name}={_checks._short(given[name])} must be {meant}")
    if isinstance(asked.schedule, str | Path):
        given["schedule"] = _read(asked.schedule)
    if isinstance(asked.ratios, str | Path):
        raise ArgumentError(f"ratios={asked.ratios!r} must be numbers; try preset={str(asked.ratios)!r}")
    targets = {"speedup": asked.speedup, "computed": asked.computed, "error": asked.error}
    if asked.calibrate and (aims := [name for name, value in targets.items() if value is not None]):
        raise ArgumentError(f"{aims[0]} given: calibrate=True computes every step; leave {aims[0]} out")
    _checks.one_of("scope", asked.scope, SCOPES)
    _checks.one_of("offload", asked.offload, (None, "cpu"))
    settings: dict[str, Any] = {
        "threshold": asked.threshold,
        "max_skips": asked.max_skips,
        "retention": asked.retention,
        "start_step": asked.start_step,
        "end_step": asked.end_step,
        "forced": asked.forced,
        "semantics": asked.semantics,
        "expert_step": asked.expert_step,
        "forecast": asked.forecast,
        "damping": asked.damping,
        "objective": asked.objective,
        "guidance": asked.guidance,
        **targets,
    }
    source = next(iter(given.values()), None)
    config = always_compute() if asked.calibrate else _config(target, source, asked.rule, settings)
    if asked.safeguard and not config.schedules:
        raise ArgumentError(
            f"safeguard={_checks._short(asked.safeguard)} compares a run with its plan; try speedup=2.0 with it"
        )
    steps = asked.steps
    if steps is not None:
        config.prepare(*config.length(_checks.steps(steps, example="28"), None))
    elif asked.ratios is not None or asked.schedule is not None:
        steps = config.length(None, None)[0]
    return AttachRequest(
        arguments=dict(arguments),
        config=config.for_any_run(),
        steps=steps,
        blocks=asked.blocks,
        scope=asked.scope,
        offload=asked.offload,
        storage_dtype=asked.storage_dtype,
        calibrate=asked.calibrate,
        window=asked.window,
        tokens=asked.tokens,
        reduce=asked.reduce,
        group=asked.group,
        safeguard=asked.safeguard,
        learn=_learns(asked.learn, config, given),
    )


def _read(path: str | Path) -> Schedule:
    try:
        return load_schedule(path)
    except ArgumentError as error:
        raise ArgumentError(f"schedule={str(path)!r}: {error}") from error


def _learns(learn: bool | str | None, config: RunConfig, given: Mapping[str, Any]) -> bool | str:
    """Whether runs teach: by default where nothing but the model was given."""
    if learn is None:
        return config.learns and not given
    if learn and not config.learns:
        why = f"{config.source or 'calibrate=True'} decides already; leave learn out, or give a target alone: speedup=2.0"
        raise ArgumentError(f"learn={learn!r} plans runs from what earlier ones taught, and {why}")
    return learn


def _config(target: Any, source: Any, rule: str | None, settings: Mapping[str, Any]) -> RunConfig:
    """What decides in the runs of ``target``: what was asked for, else a balanced plan."""
    planned = [name for name in ("speedup", "computed", "error") if settings[name] is not None]
    if rule is not None and (planned or isinstance(source, Schedule)):
        raise ArgumentError(f"rule={rule!r} contradicts {planned[0] if planned else 'schedule'}; leave one of them out")
    by_rule = rule is not None or asks_for_the_rule(settings)
    if source is None:
        source = _known(target, needed=by_rule)
        by_default = not by_rule
    else:
        by_default = not by_rule and not isinstance(source, Schedule) and not has_settings(source)
    if rule is not None and not has_settings(source) and any(settings[name] is None for name in RULE):
        raise ArgumentError(
            f"rule={rule!r}: no settings of the rule were published for this model; pass threshold, max_skips and retention, "
            "or plan: speedup=2.0"
        )
    if by_default and not planned:
        settings = {**settings, "speedup": DEFAULT_SPEED}
    return resolve(source, **settings)


def _known(target: Any, *, needed: bool) -> Any:
    """The presets that an adapter has for ``target``; ``None`` if none has any, an error where one is ``needed``."""
    try:
        known = _dispatch.preset_for(target)
    except PresetError:
        if needed:
            raise
        known = None
    if known is None and needed:
        raise ArgumentError(
            f"target={type(target).__name__} has no preset, and the rule needs magnitude ratios; pass one of preset, ratios, "
            "curve and calibration, or plan: speedup=2.0"
        )
    return PresetMatches.of(known) if isinstance(known, list | tuple) else known


_DEFAULTS = {name: each.default for name, each in signature(attach).parameters.items() if name != "target"}
