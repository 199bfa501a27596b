"""Which preset a name means, and what comes close where it means none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from magpolicy import _checks
from magpolicy._errors import PresetError
from magpolicy.catalog._file import load_preset
from magpolicy.catalog._learned import learned_of
from magpolicy.catalog._listing import Listing
from magpolicy.catalog._presets import Preset
from magpolicy.files._names import names_a_file


class PresetMatches(tuple[Preset, ...]):
    """Presets that all have the same name or alias, or all fit a model; the best one is the first."""

    __slots__ = ()

    @classmethod
    def of(cls, names: Iterable[Preset | str | Path]) -> PresetMatches:
        """These presets; in place of a name, every preset of that name or alias.

        Raises:
            PresetError: one of the names is not known.
        """
        every: dict[tuple[str, bool], Preset] = {}
        for name in names:
            for preset in [name] if isinstance(name, Preset) else named(name):
                every.setdefault((preset.name, preset.calibration is None), preset)
        return cls(every.values())

    def with_settings(self, wanted: Iterable[str]) -> Preset:
        """The first preset that has the settings of the rule in ``wanted``; if none has them all, the first preset.

        A calibration has no such settings. So where the rule decides, a user's calibration does not hide the published table.
        """
        wanted = tuple(wanted)
        return next((preset for preset in self if all(getattr(preset, name) is not None for name in wanted)), self[0])


def preset(name: str | Path) -> Preset:
    """The preset of that name or alias, or the one in a ``.json``, ``.toml`` or ``.safetensors`` file.

    The user's own come first, because a calibration of a model is better than a published table. Aliases are Hugging Face repo
    ids, the ``model_type`` names of ComfyUI-MagCache and model families; case is ignored.

    Raises:
        PresetError: no preset has that name; the message lists similar names. Or the file holds no preset.
    """
    return named(name)[0]


def named(name: str | Path) -> PresetMatches:
    """Every preset of that name or alias; :func:`preset` returns the first of them."""
    if not isinstance(name, str | Path):
        raise PresetError(f"preset={_checks._short(name)} must be a preset's name, alias or file; try 'flux.1-dev'")
    found = PresetMatches() if isinstance(name, Path) else PresetMatches(Listing().every(str(name)))
    if isinstance(name, Path) or (names_a_file(str(name)) and (not found or os.path.exists(name))):
        return PresetMatches([load_preset(name)])
    found = found or PresetMatches(one for one in learned_of() if one.name == name)
    if not found:
        hint = _checks.meant(str(name), Listing().suggested())
        mend = "" if hint else ". A model needs none: attach(pipe) plans by what models have in common, and learns from runs"
        shown = _checks._short(str(name))
        raise PresetError(f"preset={shown} is not known; {hint}`magpolicy presets` lists all {len(Listing())}{mend}")
    return found
