"""The published presets: they ship as data, read when first asked for."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from magpolicy.catalog._presets import Preset, Setting
from magpolicy.policy._curve import Curve
from magpolicy.policy._semantics import semantics


@functools.cache
def _data() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "data" / "presets.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@functools.cache
def rows() -> dict[str, dict[str, Any]]:
    """The data of every published preset, by name, in order."""
    return {row["name"]: row for row in _data()["presets"]}


@functools.cache
def names() -> dict[str, str]:
    """The name of the preset that goes by a name or alias; both in lower case here."""
    table = {alias.lower(): name for name, row in rows().items() for alias in row["aliases"]}
    return table | {name.lower(): name for name in rows()}


@functools.cache
def shipped(name: str) -> Preset:
    """The published preset of that name."""
    row = rows()[name]
    settings = tuple(Setting(**{k: s[k] for k in ("threshold", "max_skips", "retention", "kind", "semantics", "source")})
                     for s in row["settings"])  # fmt: skip
    best = next((s for s in settings if s.threshold is not None and s.retention is not None), Setting())
    conflicts = (c["text"] for c in _data()["conflicts"] if name in c["tables"])
    return Preset(
        name=name,
        curve=Curve(row["streams"], first_step=row["first_step"]),
        family=row["family"],
        threshold=best.threshold,
        max_skips=best.max_skips,
        retention=best.retention,
        semantics=semantics(row["semantics"], preset=name).name,
        aliases=tuple(row["aliases"]),
        settings=settings,
        source=row["source"],
        also_published_in=tuple(row["also_published_in"]),
        conflicts=tuple(conflicts),
        notes=tuple(row["notes"]),
        context=row["context"],
        expert_boundary=row["expert_boundary"],
    )
