"""magpolicy for ComfyUI: a node pack, and ``magpolicy.attach`` for its models.

ComfyUI finds :data:`NODE_CLASS_MAPPINGS` here. Nothing of ComfyUI or torch is imported before somebody asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magpolicy_comfyui._handle import Handle
    from magpolicy_comfyui.nodes._nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
else:
    _HOMES = {"Handle": "_handle", "NODE_CLASS_MAPPINGS": "nodes._nodes", "NODE_DISPLAY_NAME_MAPPINGS": "nodes._nodes"}

    # The core loads this package as a plugin with every run; ComfyUI is to be imported by those who use it.
    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "Handle"]
