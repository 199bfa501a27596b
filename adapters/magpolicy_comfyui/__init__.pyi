# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from ._handle import Handle
from .nodes._nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "Handle",
]
