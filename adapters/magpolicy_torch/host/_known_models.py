"""Published checkpoints, as their class and config tell them: which preset belongs to a host's model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from attrs import field, frozen

import magpolicy


@frozen
class KnownModel:
    """A published checkpoint, and the presets calibrated on it. A host's own row adds what else tells a model there."""

    model: str
    """Name of its class."""
    presets: tuple[str, ...]
    """More than one: nothing here tells which."""
    config: Mapping[str, Any] = field(factory=dict)
    """Figures of its config. A model with others is another model."""

    def fits(self, model: str, config: Mapping[str, Any]) -> bool:
        """Whether a model of that class and config may be this one."""
        return self.model == model and all(config.get(name) == value for name, value in self.config.items())


Row = TypeVar("Row", bound=KnownModel)


def rows_of(table: Iterable[Row], model: str, config: Mapping[str, Any]) -> list[Row]:
    """The rows that fit, in the order of the table."""
    return [row for row in table if row.fits(model, config)]


def near_misses(table: Iterable[KnownModel], model: str, more: Iterable[str] = ()) -> str:
    """A phrase for a message: which presets were calibrated on other models of the same class, ``more`` among them.

    It ends with ``"; "``, and is empty where there are none. Examples of a documentation are left out.
    """
    same = [name for row in table if row.model == model for name in row.presets]
    names = [name for name in dict.fromkeys([*same, *more]) if not _is_example(name)][:4]
    return f"close, of the same class: {', '.join(names)}; " if names else ""


def _is_example(name: str) -> bool:
    preset = magpolicy.presets().get(name)  # a table may be ahead of the presets that are there
    return preset is not None and preset.is_example
