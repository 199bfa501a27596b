"""Everything that is checked before a release, by one command: ``python tools/release_check.py [--tag v0.1.0] [FOLDER]``.

It lints the workflows, reads the notes from the changelog, builds the wheel and the source distribution into ``FOLDER``
(``dist``), checks what is in them, and uses both as installed in new environments. The workflow of a release runs the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"


def lint_workflows() -> None:
    """actionlint and zizmor over all workflows; offline, so that a check gives the same today and tomorrow."""
    folder = ROOT / ".github" / "workflows"
    scripts = Path(sysconfig.get_path("scripts"))
    ending = ".exe" if os.name == "nt" else ""
    _run(scripts / f"actionlint{ending}", *sorted(folder.glob("*.yml")))
    _run(scripts / f"zizmor{ending}", "--offline", "--no-progress", "--strict-collection", ROOT / ".github")


def check(folder: Path, tag: str | None, *, borrow: bool) -> None:
    """All of it; the first step that fails ends it."""
    lint_workflows()
    _run(sys.executable, TOOLS / "release_notes.py", *(("--tag", tag) if tag else ()))
    _run(sys.executable, TOOLS / "distributions.py", folder)
    made = [path for ending in ("*.whl", "*.tar.gz") for path in folder.glob(ending)]
    _run(sys.executable, TOOLS / "fresh_install.py", *(("--borrow",) if borrow else ()), *made)


def _run(*command: object) -> None:
    print("$", *command, flush=True)
    if code := subprocess.run([str(word) for word in command], cwd=ROOT).returncode:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check that a release can be made.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist", help="where wheel and sdist go")
    parser.add_argument("--tag", default=None, help="the tag of the release, such as v0.1.0")
    parser.add_argument("--borrow", action="store_true", help="try what was built with this environment's dependencies")
    given = parser.parse_args()
    check(given.folder, given.tag or None, borrow=given.borrow)


if __name__ == "__main__":
    main()
