"""The presets that plugins offer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from magpolicy.catalog._presets import Preset, checked
from magpolicy.plugin_system._registry import registry, warn_of_failure

HOOK = "presets"


def offered() -> Mapping[str, Preset]:
    """Presets of plugins, by name; one that fails its checks is left out with a warning.

    Plugins are asked once, and again when there are others.
    """
    return _ask(registry().with_hook(HOOK))


@functools.lru_cache(maxsize=1)
def _ask(_: tuple[Any, ...]) -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    for name, caller in registry().implementing(HOOK):
        try:
            found.update({preset.name: checked(preset) for batch in caller() for preset in batch})
        except Exception as error:
            warn_of_failure(name, HOOK, error)
    return found
