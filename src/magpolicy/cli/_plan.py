"""``plan`` and ``compare``: the best schedule for a speed, and what schedules are expected to cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import magpolicy
from magpolicy.calibration._forecast import FORECASTS
from magpolicy.cli import _output
from magpolicy.cli._params import Command, NumberList, Part, Source, Speed, examples
from magpolicy.cli._preview import JSON, SOURCE, of_steps_or_levels, strip_of
from magpolicy.planning._objective import OBJECTIVES
from magpolicy.schedule._export import FORMS

FILE = click.Path(dir_okay=False, path_type=Path)
GUIDANCE = click.option("--guidance", type=float, metavar="S", help="Guidance scale; as calibrated by default.")


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy plan flux.1-dev --speedup 2",
        "magpolicy plan wan2.1-t2v-1.3b --steps 20 --shift 5 --speedup 2",
        "magpolicy plan my-model.json --steps 30 --speedup 3 --plot plan.png",
        "magpolicy plan my-model.json --error 0.05 --guidance 5",
        "magpolicy plan my-model.json --computed 10 --export cache-dit",
    ),
)
@SOURCE
@of_steps_or_levels
@click.option(
    "--speedup", type=Speed(), metavar="X", help="Evaluations per computed one, at least; or quality, balanced, fast."
)
@click.option("--computed", type=int, metavar="N", help="Or the number of computed steps.")
@click.option("--error", type=float, metavar="E", help="Or a bound on the expected relative error of each skipped step.")
@click.option("--max-skips", "-K", type=int, metavar="K", help="How many steps in a row may be skipped, at most.")
@click.option("--retention", type=float, metavar="R", help="Leading share of the run that always computes, 0 to 1.")
@click.option("--forced", type=NumberList(int), metavar="N,N,...", help="Steps that always compute; -1 is the last.")
@click.option(
    "--forecast",
    type=click.Choice(FORECASTS),
    help="How the residual of a skipped step is made; by default as well as the source allows.",
)
@click.option("--damping", type=float, metavar="D", help="Factor on the linear forecast, 0 to 1.")
@click.option("--objective", type=click.Choice(list(OBJECTIVES)), help="What the plan minimizes.")
@GUIDANCE
@click.option("--batched/--separate", default=None, help="One plan for all streams (the default), or one for each.")
@click.option("--expert-step", type=int, metavar="N", help="First step of the second expert of a two-expert model.")
@click.option("--part", type=Part(), metavar="A:B", help="Steps A to B-1 of the run only (image to image, a later stage).")
@click.option("--export", "form", type=click.Choice(FORMS), help="Print it for another engine.")
@JSON
@click.option(
    "--output",
    "-o",
    type=FILE,
    metavar="FILE",
    help="Write it as JSON; `simulate`, `compare` and attach(schedule=FILE) take it.",
)
@click.option("--plot", type=FILE, metavar="FILE", help="Draw it, and error against speed; needs the `plot` extra.")
def plan(source: Any, form: str | None, as_json: bool, output: Path | None, plot: Path | None, **settings: Any) -> None:
    """Plan the best schedule for a speed.

    The expected distance says how far the schedule takes the latent off its way; of two schedules of one run, the one with
    the smaller distance is expected to come out better. 1 would be as far as the run itself goes.

    SOURCE is a calibration or what `magpolicy simulate` takes. A skipped step's residual is forecast from the last computed
    ones. With a calibration the errors are those measured; with ratios alone, those that the general prior expects.
    """
    schedule = magpolicy.plan(source, **settings)
    if output is not None:
        _write(output, schedule)
        click.echo(f"schedule: {output.resolve()}", err=as_json or form is not None)
    if plot is not None:
        _draw(source, schedule, plot, settings)
    if form is not None and not as_json:
        _say_export(schedule, form)
    elif as_json:
        _output.say_json(schedule.export(form or "json"))
    else:
        _output.say_strip(str(schedule))
        if len(set(schedule.masks)) > 1:
            width = max(map(len, schedule.streams))
            for name, mask in zip(schedule.streams, schedule.masks, strict=True):
                _output.say_strip(f"  {name:<{width}}  {strip_of(mask)}  {sum(mask)} computed")
        distance = magpolicy.expected_distance(source, schedule, guidance=settings["guidance"])
        _output.say(f"  expected distance {distance:.3g}; {summary(schedule)}", "dim")
    if plot is not None:
        click.echo(f"picture: {plot.resolve()}", err=as_json or form is not None)


def summary(schedule: magpolicy.Schedule) -> str:
    """Errors of a schedule in one line."""
    errors = schedule.errors
    worst = max(range(len(errors)), key=errors.__getitem__)
    step = schedule.first_step + worst
    forecast = "forecast" if any(map(any, schedule.coefficients)) else "held"
    most = f"{schedule.worst:.3g} at most (step {step})"
    return f"expected relative error {schedule.rms_error:.3g} rms, {most}; residuals {forecast}"


def _write(path: Path, schedule: magpolicy.Schedule) -> None:
    try:
        schedule.save(path)
    except magpolicy.MagPolicyError as error:
        raise click.BadParameter(str(error), param_hint="'--output'") from error


def _draw(source: Any, schedule: magpolicy.Schedule, path: Path, settings: dict[str, Any]) -> None:
    from magpolicy.schedule._plot import plot_plan

    kept = {k: v for k, v in settings.items() if k not in ("speedup", "computed", "error", "batched")}
    others = magpolicy.trade_off(source, **kept)
    try:
        plot_plan(schedule, others, path)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="'--plot'") from error


def _say_export(schedule: magpolicy.Schedule, form: str) -> None:
    content = schedule.export(form)
    if form == "sglang":
        for name, value in content.items():
            click.echo(f"{name}={value}")
    else:
        _output.say_json(content)


class ScheduleSpec(Source):
    """A schedule's JSON file, or the settings of one: ``speedup=3`` or ``threshold=0.1,max_skips=3,retention=0.2``."""

    name = "schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or "=" not in value:
            return value if not isinstance(value, str) else self._read(Path(value), param, ctx)
        settings: dict[str, Any] = {}
        for word in value.split(","):
            name, _, text = word.strip().partition("=")
            settings[name.replace("-", "_")] = _value(text)
        known = {"speedup", "computed", "error", "threshold", "max_skips", "retention", "forecast", "damping", "objective"}
        if extra := sorted(set(settings) - known):
            self.fail(f"{extra[0]!r} in {value!r} is not known; use {', '.join(sorted(known))}", param, ctx)
        return settings

    def _read(self, path: Path, param: click.Parameter | None, ctx: click.Context | None) -> magpolicy.Schedule:
        try:
            return magpolicy.load_schedule(path)
        except magpolicy.MagPolicyError as error:
            self.fail(f"{error}; or give settings, such as speedup=2", param, ctx)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy compare my-model.json speedup=3 threshold=0.12,max_skips=3,retention=0.2",
        "magpolicy compare my-model.json computed=10 computed=10,forecast=hold --steps 30 --plot both.png",
        "magpolicy compare my-model.json plan-a.json plan-b.json",
    ),
)
@SOURCE
@click.argument("first", type=ScheduleSpec())
@click.argument("second", type=ScheduleSpec())
@of_steps_or_levels
@GUIDANCE
@JSON
@click.option("--plot", type=FILE, metavar="FILE", help="Draw both error curves over their strips; needs the `plot` extra.")
def compare(source: Any, first: Any, second: Any, guidance: float | None, as_json: bool, plot: Path | None, **run: Any) -> None:
    """Set two schedules side by side: what each computes, and what it is expected to cost.

    FIRST and SECOND are schedules in JSON (`magpolicy plan --output`), or settings: speedup=3 or computed=10 for a plan,
    threshold=0.1,max_skips=3,retention=0.2 for the rule, each with forecast=hold or another. SOURCE, best a calibration,
    says what their errors are. The one with the smaller expected distance is expected to come out better.
    """
    both = [_schedule(source, spec, run, guidance) for spec in (first, second)]
    errors = [magpolicy.expected_errors(source, schedule, **run) for schedule in both]
    curves = [tuple(map(max, zip(*of_streams.values(), strict=True))) for of_streams in errors]
    distances = [magpolicy.expected_distance(source, schedule, guidance=guidance, **run) for schedule in both]
    if as_json:
        keys = ("mask", "computed", "speedup")
        rows = [
            {k: schedule.to_dict()[k] for k in keys} | {"distance": _finite([distance])[0], "errors": _finite(curve)}
            for schedule, distance, curve in zip(both, distances, curves, strict=True)
        ]
        _output.say_json(rows)
    else:
        for name, schedule, distance, curve in zip(("first", "second"), both, distances, curves, strict=True):
            _output.say_strip(f"{name:<7} {schedule}")
            _output.say(f"        expected distance {distance:.3g}; {_errors(curve)}", "dim")
        differ = [i for i, (a, b) in enumerate(zip(both[0].mask, both[1].mask, strict=False)) if a != b]
        _output.say(f"they differ at {len(differ)} of {both[0].steps} steps" if differ else "they compute the same steps")
    if plot is not None:
        from magpolicy.schedule._plot import plot_comparison

        try:
            plot_comparison(dict(zip(("first", "second"), zip(both, curves, strict=True), strict=True)), plot)
        except (OSError, ValueError) as error:
            raise click.BadParameter(f"{plot}: {error}", param_hint="'--plot'") from error
        click.echo(f"picture: {plot.resolve()}", err=as_json)


def _schedule(source: Any, spec: Any, run: dict[str, Any], guidance: float | None) -> magpolicy.Schedule:
    if isinstance(spec, magpolicy.Schedule):
        return spec
    if {"speedup", "computed", "error"} & set(spec):
        return magpolicy.plan(source, **spec, **run, guidance=guidance)
    return magpolicy.simulate(source, **spec, **run)


def _finite(curve: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in curve]


def _errors(curve: tuple[float, ...]) -> str:
    known = [value for value in curve if math.isfinite(value)]
    unknown = len(curve) - len(known)
    rms = math.sqrt(sum(v * v for v in known) / max(len(known), 1))
    beyond = f", {unknown} steps beyond what was calibrated" if unknown else ""
    return f"expected relative error {rms:.3g} rms, {max(known, default=0.0):.3g} at most{beyond}"
