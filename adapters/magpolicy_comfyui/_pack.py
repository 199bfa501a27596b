"""What ComfyUI's loader reads from the pack, whether it lies in custom_nodes as a clone or as the loader that was installed."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

import magpolicy
from magpolicy_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from magpolicy_comfyui.server import _routes

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

WEB_DIRECTORY = str(Path(__file__).parent / "web")
_PLUGINS = ("magpolicy_torch._plugin", "magpolicy_comfyui._plugin")


def _register_plugins() -> None:
    """The pack's own plugins, for a clone: without an installed distribution there are no entry points to find them by."""
    manager = magpolicy.manager()
    for name in _PLUGINS:
        plugin = importlib.import_module(name)
        if not manager.is_registered(plugin):
            manager.register(plugin, name=f"magpolicy:{name}")


def _add_routes() -> None:
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return  # the nodes are used without a server, as in scripts and tests
    if not _routes.add_routes(server):
        logging.warning("magpolicy: the node pack is in custom_nodes twice; remove one of the two folders")


_register_plugins()
_add_routes()
