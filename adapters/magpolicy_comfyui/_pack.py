"""What ComfyUI's loader reads from the pack, whether it lies in custom_nodes as a clone or as the loader that was installed."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import magpolicy
from magpolicy_comfyui import NODE_CLASS_MAPPINGS as _NODES
from magpolicy_comfyui import NODE_DISPLAY_NAME_MAPPINGS
from magpolicy_comfyui._prompt_server import prompt_server
from magpolicy_comfyui._same_names import SameNames, tell_when_loaded
from magpolicy_comfyui.nodes import _schema
from magpolicy_comfyui.server import _routes

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

NODE_CLASS_MAPPINGS = _schema.for_host(_NODES, NODE_DISPLAY_NAME_MAPPINGS)
"""Nodes of the schema, too: ComfyUI finds those here as well as by an entry point, and older ones find the older form."""
WEB_DIRECTORY = str(Path(__file__).parent / "web")
log = logging.getLogger("magpolicy")
_PLUGINS = ("magpolicy_torch._plugin", "magpolicy_comfyui._plugin")


def _register_plugins() -> None:
    """The pack's own plugins, for a clone: without an installed distribution there are no entry points to find them by."""
    manager = magpolicy.manager()
    for name in _PLUGINS:
        plugin = importlib.import_module(name)
        if not manager.is_registered(plugin):
            manager.register(plugin, name=f"magpolicy:{name}")


def _add_routes(server: Any) -> None:
    if server is None:
        return  # the nodes are used without a server, as in scripts and tests
    if not _routes.add_routes(server):
        log.warning("magpolicy: the node pack is in custom_nodes twice; remove one of the two folders")


def _known_nodes() -> Mapping[str, Any]:
    """The nodes of all packs so far."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", None) or {}


def _tell_of_same_names(server: Any) -> None:
    names = SameNames.before(NODE_CLASS_MAPPINGS, _known_nodes())
    tell_when_loaded(names, server, _known_nodes, lambda line: log.warning("magpolicy: %s", line))


_register_plugins()
_server = prompt_server()
_add_routes(_server)
_tell_of_same_names(_server)
