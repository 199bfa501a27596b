# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from ._handle import Handle
from ._register import register

__all__ = [
    "Handle",
    "register",
]
