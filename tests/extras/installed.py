"""Installs magpolicy for real, with another Python, and runs the documentation's pages. For a release, not for each change.

    python tests/extras/installed.py python3.10 lowest
    python tests/extras/installed.py python3.13 newest

``lowest`` installs the lowest version that ``pyproject.toml`` allows of each library, ``newest`` those of ``constraints.txt``.
Environments are made below a temporary folder, or below ``--folder``, where one that is there already is used again. On Linux
the package index has torch with GPU libraries alone, 3 GB an environment; ``--wheels`` names a folder with another build.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import ROOT, own_requirements

DOCS = ROOT / "docs"
EXTRAS = ("all", "test")
PAGES = [ROOT / "README.md", DOCS / "tutorial" / "first-run.md", *sorted((DOCS / "how-to").glob("*.md"))]
SAVE = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from pipes import saved

saved.flux(Path(sys.argv[2]) / "FluxPipeline")
saved.wan(Path(sys.argv[2]) / "WanPipeline")
"""


def lowest() -> str:
    """Constraints: of each library the lowest version allowed."""
    bounds: dict[str, str] = {}
    for requirement in own_requirements(EXTRAS):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                bounds[requirement.name] = max(bounds.get(requirement.name, "0"), bound.version, key=_numbers)
    return "".join(f"{name}=={version}\n" for name, version in bounds.items())


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def version_of(python: str) -> str:
    """``3.10``: the name of its environment; two interpreters may both be called ``python``."""
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def install(python: str, versions: str, folder: Path, wheels: str | None) -> Path:
    """Make the environment; returns its Python."""
    own = folder / "bin" / "python" if os.name != "nt" else folder / "Scripts" / "python.exe"
    if not own.exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    constraints = ROOT / "constraints.txt"
    if versions == "lowest":
        constraints = folder / "lowest.txt"
        constraints.write_text(lowest(), encoding="utf-8")
    more = [] if wheels is None else ["--find-links", wheels]
    target = f"{ROOT}[{','.join(EXTRAS)}]"
    subprocess.run(
        [own, "-m", "pip", "install", "--quiet", *more, "--constraint", constraints, "--editable", target], check=True
    )
    return own


def checks(python: Path, folder: Path) -> dict[str, list[object]]:
    """Every command to run, by a name."""
    saved, size = folder / "saved", ("--height", 32, "--width", 32, "--frames", 5, "--set", "max_sequence_length=16")
    found: dict[str, list[object]] = {"pipelines are saved": [python, "-c", SAVE, ROOT / "tests" / "diffusers", saved]}
    for page in PAGES:
        if "```python\n" in page.read_text(encoding="utf-8"):
            found[str(page.relative_to(ROOT))] = [python, ROOT / "tests" / "docs" / "page_runner.py", page]
    for page in (ROOT / "README.md", DOCS / "how-to" / "use-with-diffusers.md"):
        found[f"pipelines of {page.name}"] = [python, Path(__file__).parent / "diffusers_page.py", page, saved]
    calibrate = [python, "-m", "magpolicy", "calibrate", saved / "WanPipeline", "--steps", 6, "--prompt", "x", *size]
    found["magpolicy calibrate"] = [*calibrate, "--keep"]
    return found


def main() -> int:
    """Run every check; the exit code is the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="the interpreter: a command or a path")
    parser.add_argument("versions", choices=["lowest", "newest"])
    parser.add_argument("--folder", type=Path, help="where environments are kept")
    parser.add_argument("--wheels", help="where pip looks for wheels too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="magpolicy-installed-") as scratch:
        name = f"python{version_of(given.python)}-{given.versions}"
        own = install(given.python, given.versions, (given.folder or Path(scratch)) / name, given.wheels)
        failed = 0
        for check, command in checks(own, Path(scratch)).items():
            said = problem(command, Path(tempfile.mkdtemp(dir=scratch)))
            failed += said is not None
            print(f"ok     {check}" if said is None else f"FAILED {check}\n{said}", flush=True)
    return failed


def problem(command: list[object], folder: Path) -> str | None:
    """What a command said that failed, run in ``folder``; ``None`` where it did not."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"MAGPOLICY_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)
    return None if done.returncode == 0 else f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


if __name__ == "__main__":
    sys.exit(main())
