# The public names, each once: type checkers read this file, and lazy-loader takes from it where a name is imported from.
from ._combined import CombinedHandle
from ._handle import Handle
from ._trial import trial

__all__ = [
    "CombinedHandle",
    "Handle",
    "trial",
]
