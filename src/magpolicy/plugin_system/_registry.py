"""Finding plugins, and calling them so that one that fails does no harm to the rest."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import evolve, frozen

from magpolicy import hookspecs
from magpolicy._errors import AdapterError, MagPolicyError, PluginWarning

if TYPE_CHECKING:
    from magpolicy.catalog._presets import Preset

GROUP = hookspecs.PROJECT
DISABLE = "MAGPOLICY_DISABLE_PLUGINS"
OBSERVERS = ("on_run_start", "on_decision", "on_run_end")


@frozen
class PluginInfo:
    """One plugin: where it comes from, the hooks it implements, and why it is not in use (``None``: it is)."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    problem: str | None = None


class Registry:
    """The plugins of one process."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.infos = [self._load(entry) for entry in importlib.metadata.entry_points(group=GROUP)]

    def _load(self, entry: importlib.metadata.EntryPoint) -> PluginInfo:
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
                f"{type(error).__name__}: {error}; update or uninstall it, or set {DISABLE}={info.name}",
                PluginWarning,
                stacklevel=2,
            )
            return evolve(info, problem=f"{type(error).__name__}: {error}")
        return evolve(info, hooks=tuple(sorted(c.name for c in self.manager.get_hookcallers(plugin) or ())))

    def implementing(self, hook: str) -> Iterator[tuple[str, pluggy.HookCaller]]:
        """Each plugin that implements ``hook``, with a caller that reaches it alone."""
        caller = getattr(self.manager.hook, hook)
        plugins = [impl.plugin for impl in reversed(caller.get_hookimpls())]
        for plugin in plugins:
            others = [other for other in plugins if other is not plugin]
            yield str(self.manager.get_name(plugin)), self.manager.subset_hook_caller(hook, others)


@functools.cache
def registry() -> Registry:
    """The process's plugins, found on first use."""
    return Registry()


def manager() -> pluggy.PluginManager:
    """The pluggy manager, to register a plugin by hand: ``magpolicy.manager().register(plugin)``."""
    presets.cache_clear()
    return registry().manager


def plugins() -> tuple[PluginInfo, ...]:
    """Every plugin found through the entry-point group, in use or not."""
    return tuple(registry().infos)


def _disabled(info: PluginInfo) -> bool:
    """``MAGPOLICY_DISABLE_PLUGINS``: 1 or all leaves only magpolicy's own; else a comma list of plugins or distributions."""
    words = {word.strip().lower() for word in os.environ.get(DISABLE, "").split(",")} - {"", "0"}
    if words & {"1", "all", "true"} and info.distribution != GROUP:
        return True
    return bool(words & {info.name.lower(), info.distribution.lower()})


@functools.cache
def presets() -> dict[str, Preset]:
    """Presets offered by plugins, by name; one that fails its checks is left out with a warning."""
    from magpolicy.catalog._presets import checked

    found: dict[str, Preset] = {}
    for name, caller in registry().implementing("presets"):
        try:
            found.update({offered.name: checked(offered) for batch in caller() for offered in batch})
        except Exception as error:
            _warn(name, "presets", error)
    return found


def preset_for(target: Any) -> Any:
    """The preset that the first adapter which knows ``target`` has for it; ``None`` if none does."""
    return _first("preset_for", target, {"target": target})


def attach(target: Any, request: Any) -> Any:
    """The handle of the first adapter that takes ``target``.

    Raises:
        AdapterError: none does.
    """
    handle = _first("attach", target, {"target": target, "request": request})
    if handle is not None:
        return handle
    unused = [f"{info.name} ({info.problem})" for info in plugins() if info.problem]
    hint = f"; not in use: {', '.join(unused)}" if unused else ""
    raise AdapterError(
        f"target={_kind(target)} is nothing an installed adapter can drive; pass a torch.nn.Module, or a host object whose "
        f"adapter is installed{hint}"
    )


def compiled(target: Any, request: Any) -> Any:
    """``target``, compiled by the first adapter that takes it.

    Raises:
        AdapterError: none does.
    """
    result = _first("compile", target, {"target": target, "request": request})
    if result is None:
        raise AdapterError(f"target={_kind(target)} is nothing an installed adapter can compile; pass a torch.nn.Module")
    return result


def _first(hook: str, target: Any, values: dict[str, Any]) -> Any:
    """What the first adapter answers that does not answer ``None``."""
    for name, caller in registry().implementing(hook):
        try:
            answer = caller(**values)
        except MagPolicyError:
            raise
        except Exception as error:
            raise AdapterError(f"target: plugin {name} failed on {_kind(target)}: {type(error).__name__}: {error}") from error
        if answer is not None:
            return answer
    return None


class Observers:
    """The observers of one run; silent when there are none."""

    def __init__(self) -> None:
        manager = registry().manager
        active = any(getattr(manager.hook, hook).get_hookimpls() for hook in OBSERVERS)
        self._calls = {hook: list(registry().implementing(hook)) for hook in OBSERVERS} if active else {}

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._calls)

    def tell(self, hook: str, **values: Any) -> None:
        for name, caller in self._calls.get(hook, ()):
            try:
                caller(**values)
            except Exception as error:
                _warn(name, hook, error)


def _warn(plugin: str, hook: str, error: Exception) -> None:
    warnings.warn(
        f"plugin {plugin} failed in {hook}: {type(error).__name__}: {error}; going on without it", PluginWarning, stacklevel=3
    )


def _kind(target: Any) -> str:
    return f"{type(target).__module__}.{type(target).__qualname__}"
