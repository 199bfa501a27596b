"""Every preset there is, in one mapping: those that ship, those of plugins, and the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from magpolicy.catalog._folder import every_own, own
from magpolicy.catalog._offered import offered
from magpolicy.catalog._presets import Preset
from magpolicy.catalog._shipped import names, rows, shipped


def presets() -> Mapping[str, Preset]:
    """Every preset by name: first the published ones, then those of plugins, then the user's own. Read-only.

    95 published tables ship with magpolicy (``src/magpolicy/data/presets.json``, each with its source). The user's own are the
    preset and calibration files in the folder that :func:`magpolicy.library` names.
    """
    return Listing()


class Listing(Mapping[str, Preset]):
    """The mapping. A shipped row becomes a preset when somebody asks for it; plugins are looked for when their turn comes."""

    def __getitem__(self, name: str) -> Preset:
        return shipped(name) if name in rows() else {**own(), **offered()}[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*rows(), *offered(), *own()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def every(self, name: str) -> Iterator[Preset]:
        """Those of that name or alias: the user's own, and the shipped one, or where there is none those of plugins."""
        wanted = name.lower()
        yield from _named(name, every_own())
        if wanted in names():
            yield shipped(names()[wanted])
        else:
            yield from _named(name, offered().values())

    def suggested(self) -> Iterator[str]:
        """Every name, and every alias of a shipped one, as written, that may be suggested for one that is not known."""
        for name, row in rows().items():
            if not shipped(name).is_example:
                yield from (name, *row["aliases"])
        yield from (*offered(), *own())


def _named(wanted: str, presets: Iterable[Preset]) -> list[Preset]:
    """Those of that name or alias, whatever the case; first those written so, and of these calibrations."""
    lower = wanted.lower()
    found = (p for p in presets if lower in (p.name.lower(), *(alias.lower() for alias in p.aliases)))
    return sorted(found, key=lambda preset: (preset.name != wanted, preset.calibration is None))
