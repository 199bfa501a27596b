"""ComfyUI's server, where there is one: the nodes work without it, as in scripts and where ComfyUI is used as a library."""

from __future__ import annotations

import sys
from typing import Any


def prompt_server() -> Any:
    """The ``PromptServer`` that runs here, or is about to; ``None`` where nobody has made one.

    It is not imported for that: whoever runs a server has done so before packs are loaded, and elsewhere ``server`` may be
    anybody's module, or one that fails to import.
    """
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
