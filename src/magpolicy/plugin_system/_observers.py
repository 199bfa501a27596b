"""Telling the plugins that watch runs what happens in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
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
        """Call ``hook`` of each; one that raises an error is named in a warning, and the run goes on.

        What is no error (``KeyboardInterrupt``, a task that is cancelled) comes out when all have been told.
        """
        with ExitStack() as every_one:
            for name, caller in reversed(self._calls.get(hook, ())):
                every_one.callback(_tell, name, hook, caller, values)

    def tell_end(self, make_report: Callable[[], Any] | None, **values: Any) -> None:
        """Call ``on_run_end`` of each, with the adapter's report of the run, which is made only if somebody is told."""
        report = None
        if make_report is not None and "on_run_end" in self._calls:
            try:
                report = make_report()
            except Exception as error:  # what is counted must not break what is counted
                warn_of_failure("of the host", "report_by", error)
        self.tell("on_run_end", report=report, **values)


def _tell(name: str, hook: str, caller: Callable[..., Any], values: Mapping[str, Any]) -> None:
    try:
        caller(**values)
    except Exception as error:
        warn_of_failure(name, hook, error)
