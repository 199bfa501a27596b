"""``presets``, ``semantics`` and ``plugins``: what there is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import click

import magpolicy
from magpolicy.cli import _output
from magpolicy.cli._params import Command, Semantics, Source, examples
from magpolicy.plugin_system._registry import DISABLE, GROUP

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(
    cls=Command,
    epilog=examples(
        "magpolicy presets",
        "magpolicy presets --family wan",
        "magpolicy presets flux.1-dev",
        "magpolicy presets --json | jq -r '.[].name'",
    ),
)
@click.argument("name", type=Source(), required=False)
@click.option("--family", metavar="TEXT", help="Only families whose name contains this.")
@JSON
def presets(name: Any, family: str | None, as_json: bool) -> None:
    """List the presets with their recommended settings, or show one.

    With NAME (a preset's name or alias, or a file): all that is known about it, with the published settings and where
    they were published.
    """
    if name is None:
        _say_presets(family, as_json)
        return
    if family is not None:
        raise click.UsageError("NAME and --family: give one of them")
    if not isinstance(name, str):
        raise click.UsageError("NAME is a preset's name, alias or file, not a list of ratios")
    found = magpolicy.preset(name)
    if as_json:
        _output.say_json(_as_dict(found) | {"ratios": {k: list(v) for k, v in found.curve.ratios.items()}})
    else:
        say_preset(found)


def _say_presets(family: str | None, as_json: bool) -> None:
    every = list(magpolicy.presets().values())
    found = [p for p in every if family is None or family.lower() in p.family.lower()]
    if not found:
        families = ", ".join(dict.fromkeys(p.family for p in every if p.family))
        raise click.BadParameter(f"no family has {family!r} in its name; there are {families}", param_hint="'--family'")
    if as_json:
        _output.say_json([_as_dict(p) for p in found])
        return
    _output.say_table(
        ("name", "family", "steps", "streams", "threshold", "retention", "K", "alias"),
        (_row(p) for p in found),
        right=("steps", "threshold", "retention", "K"),
    )


def _row(preset: magpolicy.Preset) -> tuple[Any, ...]:
    settings = (preset.threshold, preset.retention, preset.max_skips)
    return preset.name, preset.family, preset.steps, preset.curve.streams, *settings, next(iter(preset.aliases), None)


def _as_dict(preset: magpolicy.Preset) -> dict[str, Any]:
    kept = attrs.asdict(preset, filter=lambda attribute, _: attribute.name not in ("curve", "calibration"))
    curve = preset.curve
    levels = {"sigmas": None if curve.assumed else list(curve.levels), "remarks": list(curve.validate())}
    return kept | {"steps": preset.steps, "first_step": curve.first_step, "streams": list(curve.streams)} | levels


def say_preset(preset: magpolicy.Preset) -> None:
    """All that is known of a preset."""
    curve = preset.curve
    first = f", the first {curve.first_step} not measured" if curve.first_step else ""
    _output.say_fields(
        [
            ("name", preset.name),
            ("family", preset.family),
            ("aliases", preset.aliases),
            ("steps", f"{preset.steps}{first}"),
            ("streams", curve.streams),
            *_calibrated(preset.calibration),
            ("noise levels", "measured" if curve.sigmas else "not published: flow levels assumed"),
            ("threshold", preset.threshold),
            ("K", preset.max_skips),
            ("retention", preset.retention),
            ("made for", preset.semantics),
            ("source", _where(preset.source)),
            *((key.replace("_", " "), _plain(value)) for key, value in preset.context.items() if value is not None),
        ]
    )
    _output.say_list("published settings", (line for setting in preset.settings for line in _published(setting)))
    boundary = preset.expert_boundary or {}
    _output.say_list("two experts", (f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in boundary.items()))
    _output.say_list("conflicts", preset.conflicts)
    _output.say_list("notes", preset.notes)
    _output.say_list("remarks on the ratios", curve.validate())
    _output.say_list("also published in", (_also(entry) for entry in preset.also_published_in))
    _output.say_list("ratios", (f"{name}: {','.join(map(repr, values))}" for name, values in curve.ratios.items()))


def _calibrated(found: magpolicy.Calibration | None) -> Iterable[tuple[str, Any]]:
    if found is not None:
        yield "calibration", f"{found.merged} sample{'s' * (found.merged > 1)}, window {found.window}"


def _published(setting: magpolicy.Setting) -> Iterable[str]:
    values = {"threshold": setting.threshold, "K": setting.max_skips, "retention": setting.retention}
    known = ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
    yield f"{known or 'none'} ({setting.semantics}): {setting.kind}"
    yield f"  {_where(setting.source)}"


def _also(entry: Mapping[str, Any]) -> str:
    equal = {True: "the same", False: "differs"}.get(entry.get("equal", ""), "")
    return "  ".join(filter(None, (_where(entry), equal, entry.get("note"))))


def _where(source: Mapping[str, Any]) -> str:
    if "repo" not in source:
        return str(source.get("path", ""))
    line = f"#L{source['line']}" if source.get("line") else ""
    return f"https://github.com/{source['repo']}/blob/{source.get('commit', 'HEAD')}/{source['path']}{line}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@click.command(
    cls=Command,
    epilog=examples("magpolicy semantics", "magpolicy semantics official/flux", "magpolicy semantics --json"),
)
@click.argument("name", type=Semantics(), required=False)
@JSON
def semantics(name: str | None, as_json: bool) -> None:
    """List the semantics there are, or show the options of one.

    Semantics say how an implementation reads the table and applies the rule. The list gives the options in which each
    differs from magpolicy's own; --semantics of the other commands takes the name.
    """
    rows = [magpolicy.semantics(key) for key in ([name] if name else magpolicy.semantics_names())]
    if as_json:
        found = [attrs.asdict(row) for row in rows]
        _output.say_json(found[0] if name else found)
    elif name:
        _output.say_fields((key, _option(value)) for key, value in _options(rows[0]))
    else:
        own = dict(_options(magpolicy.semantics()))
        _output.say_table(("name", "differs in"), ((row.name, _differences(row, own)) for row in rows))


def _options(row: magpolicy.Semantics) -> Iterable[tuple[str, Any]]:
    return ((field.name, getattr(row, field.name)) for field in attrs.fields(type(row)))


def _option(value: Any) -> Any:
    return "none" if value is None else value


def _differences(row: magpolicy.Semantics, own: Mapping[str, Any]) -> str:
    described = ("name", "source", "notes")
    return ", ".join(f"{k}={_option(v)}" for k, v in _options(row) if k not in described and v != own[k])


@click.command(cls=Command, epilog=examples("magpolicy plugins", f"{DISABLE}=1 magpolicy plugins"))
@JSON
def plugins(as_json: bool) -> None:
    """List the plugins found, and why one is not in use.

    The environment variable MAGPOLICY_DISABLE_PLUGINS turns plugins off: 1 all but magpolicy's own, or a comma list of
    names of plugins or distributions.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", magpolicy.PluginWarning)  # the list says it
        found = magpolicy.plugins()
    if as_json:
        _output.say_json([attrs.asdict(info) for info in found])
        return
    if found:
        _output.say_table(
            ("name", "distribution", "version", "hooks", "problem"),
            ((i.name, i.distribution, i.version, i.hooks, i.problem) for i in found),
        )
    else:
        _output.say(f"No plugins found: no installed distribution has the entry-point group {GROUP!r}.")
    if os.environ.get(DISABLE):
        _output.say(f"{DISABLE}={os.environ[DISABLE]} is set.")
