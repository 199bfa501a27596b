"""Presets: a model's curve and the settings recommended for it. Published ones ship as data, read when first asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from magpolicy import _checks
from magpolicy._errors import PresetError
from magpolicy.calibration._calibration import Calibration
from magpolicy.policy._curve import Curve
from magpolicy.policy._semantics import semantics as _semantics


@frozen(kw_only=True)
class Setting:
    """Settings somebody published for a table, with where."""

    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    kind: str = ""
    semantics: str = ""
    source: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True, hash=False)
class Preset:
    """A curve with the settings recommended for one model.

    ``threshold``, ``max_skips`` and ``retention`` are the recommended ones (``None`` where nobody published any);
    ``settings`` lists all that were published. ``semantics`` names the implementation the table was made for: pass it on
    to reproduce that implementation's decisions, ``None`` is magpolicy's own rule.
    """

    name: str
    curve: Curve
    family: str = ""
    threshold: float | None = None
    max_skips: int | None = None
    retention: float | None = None
    semantics: str | None = None
    aliases: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    source: Mapping[str, Any] = field(factory=dict)
    also_published_in: tuple[Mapping[str, Any], ...] = ()
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(factory=dict)
    expert_boundary: Mapping[str, Any] | None = None
    calibration: Calibration | None = field(default=None, repr=False)
    """The calibration the curve is from, where there is one: plans are then made from it."""

    @property
    def steps(self) -> int:
        """Steps of the calibration run."""
        return self.curve.steps

    def expert_step(self, steps: int, sigmas: Sequence[float] | None = None) -> int | None:
        """First step of the second (low-noise) expert in a run of ``steps``; ``None`` for a model with one.

        Given ``sigmas``, the noise level of each step, it counts those at or above the boundary, where that is known. Else it
        counts timesteps at or above the boundary on the shifted schedule (Zehong-Ma/MagCache,
        MagCache4Wan2.2/magcache_generate.py, get_timesteps). Where the schedule is not published, the place of the
        switch in the table is scaled.
        """
        if self.expert_boundary is None:
            return None
        if sigmas is not None and "boundary" in self.expert_boundary:
            return sum(s >= float(self.expert_boundary["boundary"]) for s in sigmas)
        if "shift" not in self.expert_boundary:
            return round(int(self.expert_boundary["observed_dip_step"]) * steps / self.steps)
        shift, boundary = self.expert_boundary["shift"], self.expert_boundary["boundary"]
        shares = np.linspace(1.0, 0.01, steps + 1)[:-1]
        times = (np.float32(1000) * (shift * shares / (1 + (shift - 1) * shares)).astype(np.float32)).astype(np.int64)
        return int((times >= 1000 * boundary).sum())


class PresetMatches(tuple[Preset, ...]):
    """Presets that all go by the name asked for, or all fit a model: the first one serves it best."""

    __slots__ = ()

    @classmethod
    def of(cls, names: Iterable[Preset | str | Path]) -> PresetMatches:
        """Those, and whatever else goes by the names among them.

        Raises:
            PresetError: one of the names is not known.
        """
        every = [preset for name in names for preset in ([name] if isinstance(name, Preset) else named(name))]
        return cls({preset.name: preset for preset in every}.values())

    def with_settings(self, wanted: Iterable[str]) -> Preset:
        """The first that has the settings of the rule in ``wanted``; where none has them all, the first.

        A calibration has none: one that a user keeps is passed over for the published table where the rule decides.
        """
        wanted = tuple(wanted)
        return next((preset for preset in self if all(getattr(preset, name) is not None for name in wanted)), self[0])


def presets() -> Mapping[str, Preset]:
    """Every preset by name: those published, in order, those of plugins, and the user's own. Read-only.

    95 published tables ship with magpolicy (``src/magpolicy/data/presets.json``, each with its source). The user's own are the
    preset and calibration files in ``$MAGPOLICY_HOME`` (by default ``~/.local/share/magpolicy``).
    """
    return _Presets()


def preset(name: str | Path) -> Preset:
    """The preset of that name or alias, or the one in a ``.json``, ``.toml`` or ``.safetensors`` file.

    The user's own come first: a calibration of a model serves it better than a published table. Aliases are Hugging Face repo
    ids, the ``model_type`` names of ComfyUI-MagCache and model families; case is ignored.

    Raises:
        PresetError: nothing has that name; the message lists what comes close. Or the file holds no preset.
    """
    return named(name)[0]


def named(name: str | Path) -> PresetMatches:
    """Every preset of that name or alias, as :func:`preset`, which gives the first."""
    if isinstance(name, Path) or str(name).lower().endswith((".json", ".toml", ".safetensors")):
        from magpolicy.catalog._file import load_preset

        return PresetMatches([load_preset(name)])
    found = PresetMatches(_Presets().every(str(name)))
    if not found:
        import difflib

        near = difflib.get_close_matches(str(name).lower(), {n.lower() for n in _names()}, n=4, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        shown = _checks._short(str(name))
        raise PresetError(f"preset={shown} is not known; {hint}`magpolicy presets` lists all {len(_rows())}")
    return found


class _Presets(Mapping[str, Preset]):
    """The shipped rows and those of plugins, turned into presets one by one when asked for."""

    def __getitem__(self, name: str) -> Preset:
        if name in _rows():
            return _shipped(name)
        return ({**_own(), **_of_plugins()})[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*_rows(), *_of_plugins(), *_own()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def every(self, name: str) -> Iterator[Preset]:
        """Those of that name or alias: the user's own, and the shipped one, or where there is none those of plugins."""
        wanted = name.lower()
        yield from _named(wanted, _own())
        if wanted in _aliases():
            yield _shipped(_aliases()[wanted])
        else:
            yield from _named(wanted, _of_plugins())


def _named(wanted: str, found: Mapping[str, Preset]) -> Iterator[Preset]:
    for preset in found.values():
        if wanted in (preset.name.lower(), *(alias.lower() for alias in preset.aliases)):
            yield preset


def _own() -> dict[str, Preset]:
    from magpolicy.catalog import _folder  # late: it reads files

    return _folder.own()


def _of_plugins() -> dict[str, Preset]:
    from magpolicy.plugin_system import _registry  # late: looking for plugins costs more than all the rest of the import

    return _registry.presets()


@functools.cache
def _data() -> dict[str, Any]:
    text = (Path(__file__).parents[1] / "data" / "presets.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in _data()["presets"]}


@functools.cache
def _aliases() -> dict[str, str]:
    table = {alias.lower(): name for name, row in _rows().items() for alias in row["aliases"]}
    return table | {name.lower(): name for name in _rows()}


def _names() -> list[str]:
    return [*_rows(), *(alias for row in _rows().values() for alias in row["aliases"]), *_of_plugins(), *_own()]


@functools.cache
def _shipped(name: str) -> Preset:
    row = _rows()[name]
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
        semantics=_semantics(row["semantics"], preset=name).name,
        aliases=tuple(row["aliases"]),
        settings=settings,
        source=row["source"],
        also_published_in=tuple(row["also_published_in"]),
        conflicts=tuple(conflicts),
        notes=tuple(row["notes"]),
        context=row["context"],
        expert_boundary=row["expert_boundary"],
    )


def checked(candidate: Preset) -> Preset:
    """A preset from outside with its settings checked.

    Raises:
        PresetError: a setting is out of range.
    """
    try:
        if not isinstance(candidate.name, str) or not candidate.name:
            raise PresetError(f"name={candidate.name!r} must be a text of at least one character")
        if not isinstance(candidate.curve, Curve):
            raise PresetError(f"curve={_checks._short(candidate.curve)} must be a Curve; try Curve(ratios)")
        if candidate.threshold is not None:
            _checks.number("threshold", candidate.threshold, 0, example="0.06")
        if candidate.max_skips is not None:
            _checks.whole("max_skips", candidate.max_skips, 0, example="3")
        if candidate.retention is not None:
            _checks.number("retention", candidate.retention, 0, 1, example="0.2")
        if candidate.semantics is not None:
            _semantics(candidate.semantics)
    except ValueError as error:
        raise PresetError(f"preset {candidate.name!r}: {error}") from error
    return candidate
