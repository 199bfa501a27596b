"""Environments with exactly what one extra brings, made in a moment: the distributions are links to those installed here.

What an extra brings is read from ``pyproject.toml`` and, for other people's distributions, from their metadata. So an
environment lacks whatever else is installed here, and a page that needs more than it names fails as it does at a user's.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from attrs import frozen
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RUNNER = ("sybil",)  # what runs a page beside the page's own extras; it needs nothing itself


@frozen
class Environment:
    """A virtual environment."""

    python: Path
    distributions: tuple[str, ...]
    """Their canonical names, without magpolicy's own."""

    def run(self, *arguments: object, cwd: Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run its Python, without what this process would hand on."""
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        env = {**kept, "MAGPOLICY_HOME": str(cwd / "home"), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=timeout, check=False)


def with_extras(folder: Path, extras: Sequence[str], *, beside: Sequence[str] = (), without: Sequence[str] = ()) -> Environment:
    """Make an environment in ``folder`` that holds magpolicy with ``extras``, and the distributions ``beside``.

    Those named in ``without`` are left out with all that only they need: what cannot be had on this machine.

    Raises:
        metadata.PackageNotFoundError: something that the extras ask for is not installed here.
    """
    venv.create(folder, symlinks=os.name != "nt", with_pip=False)
    python = next(folder.glob("bin/python"), folder / "Scripts" / "python.exe")
    asked = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    site = Path(asked.stdout.strip())
    asked_for = [requirement for requirement in own_requirements(extras) if requirement.name not in without]
    found = closure([*asked_for, *map(Requirement, beside)])
    link(found.values(), site)
    write_own(site)
    return Environment(python, tuple(sorted(found)))


def own_requirements(extras: Sequence[str]) -> list[Requirement]:
    """What magpolicy itself and its ``extras`` ask for, extras of its own that they name included."""
    project = _project()
    waiting, seen, found = list(extras), set(), [Requirement(line) for line in project["dependencies"]]
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            if requirement.name == project["name"]:
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


def closure(requirements: Sequence[Requirement]) -> dict[str, metadata.Distribution]:
    """All that ``requirements`` bring on this machine, by canonical name."""
    waiting = [(requirement, "") for requirement in requirements]
    seen, found = set(), {}
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = distribution = metadata.distribution(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(line), wanted) for line in distribution.requires or ()]
    return found


def link(distributions: Collection[metadata.Distribution], site: Path) -> None:
    """Link the files of ``distributions`` into ``site``: a folder as a whole where it is one distribution's alone."""
    files = {d.metadata["Name"]: [f for f in d.files or () if f.parts[0] not in ("..", "__pycache__")] for d in distributions}
    homes = {d.metadata["Name"]: Path(str(d.locate_file(""))) for d in distributions}
    shared = Counter(top for paths in files.values() for top in {path.parts[0] for path in paths})
    for name, paths in files.items():
        for path in dict.fromkeys(Path(p.parts[0]) if shared[p.parts[0]] == 1 else Path(*p.parts) for p in paths):
            target = site / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(homes[name] / path)


def write_own(site: Path) -> None:
    """Put magpolicy itself into ``site``: its packages by a path file, its plugins and commands by metadata."""
    project = _project()
    (site / "magpolicy-own.pth").write_text("".join(f"{ROOT / part}\n" for part in ("src", "adapters", "examples")))
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
