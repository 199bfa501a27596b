"""Semantics: the small options in which published implementations of the rule differ, as data.

The options are orthogonal and read in one place each: the table options when a run's step tables are built (``_step_table``),
the rule options in the skip test (``_policy``), the stream options when several streams decide together.
Rows live in ``data/semantics.json``; a new implementation is a new row, not code.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs.validators import in_, instance_of, optional

from magpolicy import _checks
from magpolicy._errors import ArgumentError

Retention = Literal["nearest", "floor", "ceil", "at_least_one", "one_more", "of_levels", "per_call", "none"]
Interpolation = Literal["noise_level", "round", "linspace", "round32", "floor", "linear", "none"]


@frozen(kw_only=True)
class Semantics:
    """One way to read a table of ratios and to apply the rule.

    The defaults are magpolicy's own choice; see docs/explanation/the-rule for why, and the rows of
    ``data/semantics.json`` for what each published implementation does (source files named there).
    """

    __module__ = "magpolicy"

    name: str = "magpolicy"
    """The row's name: ``"magpolicy"`` or the implementation's, e.g. ``"official/flux"``."""

    comparison: Literal["<=", "<"] = field(default="<=", validator=in_(("<=", "<")))
    """How accumulated error compares with the threshold for a skip."""
    retention: Retention = field(
        default="nearest",
        validator=in_(("nearest", "floor", "ceil", "at_least_one", "one_more", "of_levels", "per_call", "none")),
    )
    """Steps always computed out of N at retention R: int(R*N+0.5), int(R*N), ceil(R*N), max(int(R*N), 1), int(R*N)+1,
    int(R*(N+1)); ``per_call`` counts the calls of all streams, int(S*N*R) of them; ``none`` ignores retention."""
    interpolation: Interpolation = field(
        default="noise_level",
        validator=in_(("noise_level", "round", "linspace", "round32", "floor", "linear", "none")),
    )
    """How a table calibrated at n steps serves N: by noise level (the product of ratios is kept); the entry at
    round(i*(n-1)/(N-1)) computed in float64, over a linspace, or in float32; at its floor; linear between entries;
    or entry i itself, computing past the table's end."""
    single_step: Literal["last", "first"] = field(default="last", validator=in_(("last", "first")))
    """Which entry a one-step run reads."""
    transform: Literal["sqrt", "mean"] | None = field(default=None, validator=optional(in_(("sqrt", "mean"))))
    """Applied to the table first: square root, or the mean over streams."""
    precision: Literal["float64", "float32"] = field(default="float64", validator=in_(("float64", "float32")))
    """Of ratios, accumulators and the threshold they are compared with."""
    error: Literal["absolute", "signed", "step"] = field(default="absolute", validator=in_(("absolute", "signed", "step")))
    """What a skip adds to the error: abs(1-P), 1-P, or abs(1-ratio) of the step alone."""
    initial_skips: int = field(default=0, validator=instance_of(int))
    """The skip counter at the start of a run; above 0 it makes the first eligible step compute."""
    ratio_bound: float | None = field(default=None, validator=optional(instance_of(float)))
    """A step with abs(1-ratio) above it computes."""
    forbidden_index: int | None = field(default=None, validator=optional(instance_of(int)))
    """Entry of the calibrated table that is never skipped."""
    forbidden_of: int | None = field(default=None, validator=optional(instance_of(int)))
    """Length of the table that entry is counted in, where the source writes it down; else the table's own."""
    forbidden_effect: Literal["reset", "bypass"] = field(default="reset", validator=in_(("reset", "bypass")))
    """What that step does to the accumulators: reset them, or nothing at all."""
    ineligible: Literal["reset", "keep"] = field(default="reset", validator=in_(("reset", "keep")))
    """What a step computed for retention, window or force does to the accumulators. Reset is the consistent choice,
    the residual being fresh; the published implementations keep them, TeleFuser's and Shiba's reset."""
    last_step: Literal["rule", "compute"] = field(default="rule", validator=in_(("rule", "compute")))
    """Whether the last step of a run is always computed."""
    joint: Literal["all", "any", "first"] = field(default="all", validator=in_(("all", "any", "first")))
    """When a call that holds several streams skips: all of them pass the test, any does, or the first one does."""
    batched: bool = field(default=False, validator=instance_of(bool))
    """Whether this implementation evaluates all streams in one call, so that ``simulate`` decides them jointly."""
    experts: Literal["each", "second_only", "one"] = field(default="each", validator=in_(("each", "second_only", "one")))
    """Two-expert models: retention applies to each expert's part, the first expert never skips (retention applies to
    the second), or the boundary is not looked at."""
    boundary: Literal["reset", "keep", "strict"] = field(default="reset", validator=in_(("reset", "keep", "strict")))
    """At the switch of experts: compute and start afresh; keep accumulators and residual; or keep them and read the
    second expert's retention as a strict float32 bound (the official Wan2.2 text-to-video script)."""
    constant_retention: float | None = field(default=None, validator=optional(instance_of(float)))
    """Retention written into the source, which the caller's value does not change."""
    source: str = ""
    """Repository and file the row was read from."""
    notes: str = ""
    """What is left out on purpose, and why."""


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    text = (Path(__file__).parents[1] / "data" / "semantics.json").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = json.loads(text)["semantics"]
    return rows


def semantics_names() -> tuple[str, ...]:
    """The names that :func:`semantics` takes, magpolicy's own first."""
    return tuple(_rows())


@functools.cache
def _named(name: str) -> Semantics:
    row = dict(_rows()[name])
    row.pop("variants", None)
    return attrs.evolve(_named(row.pop("like")), name=name, **row) if "like" in row else Semantics(name=name, **row)


def semantics(name: str | Semantics | None = None, *, preset: str | None = None) -> Semantics:
    """Semantics by name; ``None`` is magpolicy's own.

    Args:
        name: a row's name such as ``"official/wan2.1"``, or a :class:`Semantics`, which is returned as it is.
        preset: name of the preset it is used with, for the one published name that covers two rules (Wan2.2 text-to-video
            and image-to-video).

    Raises:
        ArgumentError: the name is unknown.
    """
    if isinstance(name, Semantics):
        return name
    key = "magpolicy" if name is None else name
    if not isinstance(key, str) or key not in _rows():
        hint = _checks.meant(name, _rows()) if isinstance(name, str) else ""
        raise ArgumentError(
            f"semantics={_checks._short(name)} is not known; {hint}`magpolicy semantics` lists all {len(_rows())}, "
            "and so does semantics_names()"
        )
    variants = _rows()[key].get("variants", {})
    return _named(variants.get(preset, key))
