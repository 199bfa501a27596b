"""Finding plugins, and calling them so that one that fails does no harm to the rest.

pluggy and the search for entry points are imported when the first plugin is asked for, and only here: they would double what
``import magpolicy`` costs beyond numpy, and a preview needs neither.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from magpolicy._errors import PluginWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import pluggy

GROUP = "magpolicy"
DISABLE = "MAGPOLICY_DISABLE_PLUGINS"


@frozen
class PluginInfo:
    """One plugin: where it comes from, the hooks it implements, and why it is not in use (``None``: it is)."""

    __module__ = "magpolicy"

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    problem: str | None = None


class Registry:
    """The plugins of one process."""

    def __init__(self) -> None:
        from importlib.metadata import entry_points

        import pluggy

        from magpolicy import hookspecs

        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.infos = [self._load(entry) for entry in entry_points(group=GROUP)]

    def _load(self, entry: EntryPoint) -> PluginInfo:
        info = PluginInfo(entry.name, *((entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")))
        if _disabled(info):
            return evolve(info, problem=f"turned off by {DISABLE}={os.environ[DISABLE]}")
        label = f"{info.distribution}:{info.name}"
        try:
            plugin = entry.load()
            self.manager.register(plugin, name=label)
            self.manager.check_pending()
        except (Exception, SystemExit) as error:
            self.manager.unregister(name=label) if self.manager.has_plugin(label) else None
            if info.distribution == GROUP and isinstance(error, ModuleNotFoundError):
                return evolve(info, problem=f"{error}; pip install 'magpolicy[{entry.name}]'")  # an extra not asked for
            warnings.warn(
                f"plugin {info.name!r} of distribution {info.distribution} {info.version} was left out: "
                f"{in_words(error)}; update or uninstall it, or set {DISABLE}={info.name}",
                PluginWarning,
                stacklevel=2,
            )
            return evolve(info, problem=in_words(error))
        return evolve(info, hooks=tuple(sorted(c.name for c in self.manager.get_hookcallers(plugin) or ())))

    def with_hook(self, hook: str) -> tuple[Any, ...]:
        """The plugins that implement ``hook``, in the order in which they are asked."""
        return tuple(impl.plugin for impl in reversed(getattr(self.manager.hook, hook).get_hookimpls()))

    def implementing(self, hook: str) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """Each plugin that implements ``hook``, with a caller that reaches it alone."""
        plugins = self.with_hook(hook)
        for plugin in plugins:
            others = [other for other in plugins if other is not plugin]
            yield str(self.manager.get_name(plugin)), self.manager.subset_hook_caller(hook, others)


@functools.cache
def registry() -> Registry:
    """The process's plugins, found on first use."""
    return Registry()


def manager() -> pluggy.PluginManager:
    """The pluggy manager, to register a plugin by hand: ``magpolicy.manager().register(plugin)``."""
    return registry().manager


def plugins() -> tuple[PluginInfo, ...]:
    """Every plugin of the entry-point group, in use or not."""
    return tuple(registry().infos)


def _disabled(info: PluginInfo) -> bool:
    """``MAGPOLICY_DISABLE_PLUGINS``: 1 or all leaves only magpolicy's own; else a comma list of plugins or distributions."""
    words = {word.strip().lower() for word in os.environ.get(DISABLE, "").split(",")} - {"", "0"}
    if words & {"1", "all", "true"} and info.distribution != GROUP:
        return True
    return bool(words & {info.name.lower(), info.distribution.lower()})


def warn_of_failure(plugin: str, hook: str, error: Exception) -> None:
    """Say that a plugin failed in a hook; what follows goes on without it."""
    warnings.warn(f"plugin {plugin} failed in {hook}: {in_words(error)}; going on without it", PluginWarning, stacklevel=3)


def in_words(error: BaseException) -> str:
    """The kind of a plugin's error and what it says, if it can say it."""
    try:
        said = str(error)
    except Exception:
        said = "it cannot be printed"
    return f"{type(error).__name__}: {said}"
