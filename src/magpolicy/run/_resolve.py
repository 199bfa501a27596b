"""From what a user gives, a source and settings, to what decides in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from magpolicy import _checks
from magpolicy._errors import ArgumentError
from magpolicy.calibration._calibration import Calibration
from magpolicy.calibration._forecast import check_forecast
from magpolicy.calibration._lessons import Taught
from magpolicy.catalog._file import HoldsSchedule
from magpolicy.catalog._learned import in_words
from magpolicy.catalog._matching import PresetMatches, named
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._source import PlanSource, SourceContent
from magpolicy.planning._objective import Objective
from magpolicy.planning._target import PlanTarget
from magpolicy.policy._curve import Curve
from magpolicy.policy._policy import check_rule
from magpolicy.policy._semantics import Semantics
from magpolicy.policy._semantics import semantics as semantics_of
from magpolicy.policy._step_table import Limits
from magpolicy.run._config import Calibrate, Fixed, RunConfig
from magpolicy.run._planned import Plan
from magpolicy.run._rule import Rule
from magpolicy.schedule._schedule import Schedule


def resolve(
    source: PlanSource | Schedule | PresetMatches,
    *,
    threshold: float | None = None,
    max_skips: int | None = None,
    retention: float | None = None,
    start_step: int = 0,
    end_step: int | None = None,
    forced: Iterable[int] | None = None,
    semantics: str | Semantics | None = None,
    expert_step: int | None = None,
    forecast: str | None = None,
    damping: float | None = None,
    speedup: float | str | None = None,
    computed: int | None = None,
    error: float | None = None,
    objective: str | Objective | None = None,
    guidance: float | Mapping[str, float] | None = None,
) -> RunConfig:
    """Check a source and settings. Settings that are not given come from the preset.

    A run follows a :class:`magpolicy.Schedule`; with a target (``speedup``, ``computed`` or ``error``) each run is planned, by
    the general prior alone where ``source`` is ``None``; otherwise the rule decides. If several presets have a name, the first
    one that has the missing settings is used: for a plan the user's calibration, for the rule the published table.

    Raises:
        ArgumentError: something is missing, unknown or out of range.
    """
    factor = check_forecast(forecast, damping)[1]
    if isinstance(source, str | Path):
        try:
            source = named(source)
        except HoldsSchedule as found:
            source = found.schedule
    targets: dict[str, Any] = {
        "speedup": speedup,
        "computed": computed,
        "error": error,
        "objective": objective,
        "guidance": guidance,
    }
    rule = {"threshold": threshold, "max_skips": max_skips, "retention": retention}
    window = {"start_step": start_step, "end_step": end_step, "forced": forced, "expert_step": expert_step}
    if isinstance(source, Schedule):
        others = targets | rule | window | {"start_step": start_step or None, "semantics": semantics}
        _refuse(others, "contradicts schedule, which decides already")
        return Fixed(schedule=source, forecast=forecast, damping=factor)
    planned = any(value is not None for value in targets.values())
    by_calibration = planned or forecast in ("calibrated", "second-order")
    chosen = _chosen(source, () if by_calibration else [name for name, value in rule.items() if value is None])
    if planned:
        of_the_rule = {"threshold": threshold, "start_step": start_step or None, "end_step": end_step, "semantics": semantics}
        _refuse(of_the_rule, "is for the rule, a target is planned for")
        target = PlanTarget(
            max_skips=max_skips, retention=retention, forced=forced, expert_step=expert_step, forecast=forecast,
            damping=damping, **targets,
        )  # fmt: skip
        return _plan(chosen, target)
    return _rule(chosen, rule, window, semantics, forecast, factor)


def asks_for_the_rule(settings: Mapping[str, Any]) -> bool:
    """Whether one of these settings of :func:`resolve` is for the rule, and none is a target of a plan."""
    if any(settings.get(name) is not None for name in ("speedup", "computed", "error")):
        return False
    return bool(settings.get("start_step")) or any(settings.get(name) is not None for name in _OF_THE_RULE)


def has_settings(source: Any) -> bool:
    """Whether ``source`` is a preset, or the name of one, that was published with all settings of the rule."""
    several = named(source) if isinstance(source, str | Path) else (source,) if isinstance(source, Preset) else source
    matches = several if isinstance(several, tuple) else ()
    return any(all(getattr(preset, name) is not None for name in RULE) for preset in matches)


def always_compute(source: str = "") -> RunConfig:
    """The settings of a run in which every step computes, for calibrating.

    Args:
        source: what decided that, in words, where it is not the user. The run's noise levels are then read.
    """
    return Calibrate(source, "noise") if source else Calibrate()


def _refuse(settings: Mapping[str, Any], why: str) -> None:
    for name, value in settings.items():
        if value is not None:
            raise ArgumentError(f"{name}={_checks._short(value)} {why}; leave {name} out")


def _plan(chosen: Any, target: PlanTarget) -> RunConfig:
    target.check_target()
    content, what = SourceContent.of(chosen), _in_words(chosen)
    content.check_expert_step(target.expert_step)
    if content.calibration is None:
        what = f"the general prior, {'norms taken for constant' if chosen is None else f'norms of {what}'}"
    plan = Plan(
        curve=content.curve,
        target=target,
        source=f"a plan from {what}",
        preset=content.preset,
        calibration=content.calibration,
    )
    known = plan.calibration
    return plan if known is None or Taught.of(known) is None else plan.taught_by(known)


def _rule(
    chosen: Any,
    rule: Mapping[str, Any],
    window: Mapping[str, Any],
    semantics: str | Semantics | None,
    forecast: str | None,
    damping: float,
) -> Rule:
    content = SourceContent.of(chosen)
    preset, calibration, curve = content.preset, content.calibration, content.curve
    if curve is None:
        raise ArgumentError("source=None: the rule needs magnitude ratios, of a preset or your own; or plan: try speedup=2.0")
    if forecast == "calibrated" and calibration is None:
        raise ArgumentError("forecast='calibrated' needs a Calibration or a planned Schedule; try forecast='linear'")
    if forecast == "second-order":
        raise ArgumentError("forecast='second-order' is fitted to a plan; try speedup=2.0, or forecast='calibrated'")
    content.check_expert_step(window["expert_step"])
    published = {name: _setting(preset, calibration, name, value) for name, value in rule.items()}
    threshold, max_skips = check_rule(published["threshold"], published["max_skips"])
    forced, expert_step = window["forced"], window["expert_step"]
    return Rule(
        curve=curve,
        threshold=threshold,
        max_skips=max_skips,
        limits=Limits(
            retention=_checks.number("retention", published["retention"], 0, 1, example="0.2"),
            start_step=_checks.whole("start_step", window["start_step"], 0, example="0"),
            end_step=window["end_step"],
            forced=None if forced is None else _checks.listed("forced", forced, "steps"),
            expert_step=None if expert_step is None else _checks.whole("expert_step", expert_step, 0, example="26"),
        ),
        semantics=semantics_of(semantics, preset=None if preset is None else preset.name),
        source=f"the rule on {_in_words(chosen)}",
        preset=preset,
        calibration=calibration,
        forecast=forecast,
        damping=damping,
    )


RULE = {"threshold": "0.06", "max_skips": "3", "retention": "0.2"}
"""The settings of the rule that presets are published with, and an example of each."""
_OF_THE_RULE = (*RULE, "end_step", "semantics")


def _setting(preset: Preset | None, calibration: Calibration | None, name: str, value: Any) -> Any:
    """A setting of the rule: the one given, or the preset's."""
    if value is None:
        value = getattr(preset, name, None)
    if value is not None:
        return value
    example = RULE[name]
    if calibration is not None:
        what = f"calibration {preset.name!r}" if preset else "a calibration"
        raise ArgumentError(f"{name}=None: {what} carries no settings of the rule; try {name}={example}, or plan: speedup=2.0")
    whose = f"preset {preset.name!r} has no published {name}" if preset else "ratios alone carry no settings"
    raise ArgumentError(f"{name}=None: {whose}; try {name}={example}")


def _chosen(source: Any, wanted: Iterable[str]) -> Any:
    """The source, of several presets the one that has the settings in ``wanted``; the log says which was passed over."""
    if not isinstance(source, PresetMatches):
        return source
    chosen = source.with_settings(wanted)
    if chosen is not source[0]:
        import logging  # late: it takes longer than the rest of the import

        logging.getLogger("magpolicy").info(
            "magpolicy: by the rule on %s; %s plans with speedup=2.0", _in_words(chosen), _in_words(source[0])
        )
    return chosen


def _in_words(source: Any) -> str:
    calibration = source.calibration if isinstance(source, Preset) else source
    if isinstance(calibration, Calibration) and Taught.of(calibration) is not None:
        return in_words(calibration)
    if isinstance(source, Preset):
        return f"{'preset' if source.calibration is None else 'calibration'} {source.name!r}"
    if isinstance(source, Calibration):
        return f"calibration {source.name!r}" if source.name else "the calibration given"
    return "the curve given" if isinstance(source, Curve) else "the ratios given"
