"""Telling the plugins that watch runs what happens in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magpolicy.plugin_system._registry import registry, warn_of_failure

HOOKS = ("on_run_start", "on_decision", "on_run_end")


class Observers:
    """The observers of one run; silent when there are none."""

    def __init__(self) -> None:
        plugins = registry()
        self._calls = {hook: list(plugins.implementing(hook)) for hook in HOOKS if plugins.with_hook(hook)}
        self.of_decisions = "on_decision" in self._calls
        """Whether some are told of each decision."""

    def tell(self, hook: str, **values: Any) -> None:
        """Call ``hook`` of each; one that raises is named in a warning, and the run goes on."""
        for name, caller in self._calls.get(hook, ()):
            try:
                caller(**values)
            except Exception as error:
                warn_of_failure(name, hook, error)

    def tell_end(self, make_report: Callable[[], Any] | None, **values: Any) -> None:
        """Call ``on_run_end`` of each, with the adapter's report of the run, which is made only if somebody is told."""
        report = None
        if make_report is not None and "on_run_end" in self._calls:
            try:
                report = make_report()
            except Exception as error:  # what is counted must not break what is counted
                warn_of_failure("of the host", "report_by", error)
        self.tell("on_run_end", report=report, **values)
