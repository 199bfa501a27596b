"""``python -m magpolicy``: the command line."""

from __future__ import annotations

from magpolicy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
