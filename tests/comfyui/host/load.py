"""ComfyUI inside this process."""

from __future__ import annotations

import gc
import sys
import warnings
from pathlib import Path
from typing import Any

from host.fetch import DEFAULT, obtain

STAND_INS = Path(__file__).parent / "stand_ins"
_FREE = 16 << 30
ARGUMENTS = ("--cpu", "--use-pytorch-cross-attention", "--disable-api-nodes", "--disable-xformers")


def load(version: str = DEFAULT) -> Path:
    """Make ``comfy``, ``nodes``, ``folder_paths`` … importable, on the CPU; gives the folder they are in.

    Raises:
        Unavailable: it cannot be fetched.
        RuntimeError: this process holds another version.
    """
    folder = obtain(version)
    present = sys.modules.get("comfy")
    if present is not None:
        if Path(present.__path__[0]).parent != folder:
            raise RuntimeError(f"this process holds another ComfyUI: {present.__path__[0]}")
        return folder
    sys.path.insert(0, str(folder))
    sys.path.append(str(STAND_INS))
    before, sys.argv = sys.argv, ["main.py", *ARGUMENTS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its options are read when comfy.cli_args is imported, and only if this is said before.
            import comfy.options

            comfy.options.enable_args_parsing()
            import comfy.cli_args
            import comfy.model_management
            import nodes  # noqa: F401
    finally:
        sys.argv = before
    assert comfy.model_management.get_torch_device().type == "cpu"
    _steady_memory(comfy.model_management)
    gc.freeze()  # as all that was collected: tests/conftest.py
    return folder


def _steady_memory(management: Any) -> None:
    """ComfyUI puts as many conditions into one call as memory is free for, which here would depend on what else is running."""

    def get_free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
        return (_FREE, _FREE) if torch_free_too else _FREE

    management.get_free_memory = get_free_memory
