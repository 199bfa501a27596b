"""Telling the plugins that watch runs what happens in one."""

from __future__ import annotations

from typing import Any

from magpolicy.plugin_system._registry import registry, warn_of_failure

HOOKS = ("on_run_start", "on_decision", "on_run_end")


class Observers:
    """The observers of one run; silent when there are none."""

    def __init__(self) -> None:
        plugins = registry()
        self._calls = {hook: list(plugins.implementing(hook)) for hook in HOOKS if plugins.with_hook(hook)}
        self.any = bool(self._calls)
        """Whether there are some."""

    def tell(self, hook: str, **values: Any) -> None:
        """Call ``hook`` of each; one that raises is named in a warning, and the run goes on."""
        for name, caller in self._calls.get(hook, ()):
            try:
                caller(**values)
            except Exception as error:
                warn_of_failure(name, hook, error)
