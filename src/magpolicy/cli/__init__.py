"""The command line, ``magpolicy`` or ``python -m magpolicy`` (the ``cli`` extra).

``_app`` has the program and what happens to errors, ``_params`` how arguments are read, ``_output`` how results are
shown; the commands are in ``_preview`` (simulate, sweep), ``_plan`` (plan, compare), ``_calibrate``, ``_lists`` (presets,
semantics, plugins), ``_library``, ``_try``, ``_evaluate``, ``_comfyui`` and ``_demo``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_LIBRARIES = ("click", "rich")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 for a failure, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        from magpolicy.cli._app import run

        return run(args)
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        print(f"Error: the command line needs {error.name}; pip install 'magpolicy[cli]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
