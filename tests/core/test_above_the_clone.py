"""Python started in the folder above a clone finds the clone's own ``__init__.py`` first; what it imports is the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import magpolicy

ROOT = Path(__file__).parents[2]
PACKAGE = Path(magpolicy.__file__).parents[1]
LOOK = """
import magpolicy, magpolicy.schedule
import magpolicy.cli
print(magpolicy.simulate("flux.1-dev"), magpolicy.__file__)
"""


@pytest.fixture
def above(tmp_path: Path) -> Path:
    """A folder with a clone in it."""
    (tmp_path / "magpolicy").mkdir()
    (tmp_path / "magpolicy" / "__init__.py").write_bytes((ROOT / "__init__.py").read_bytes())
    (tmp_path / "script.py").write_text(LOOK, encoding="utf-8")
    return tmp_path


def started(folder: Path, *words: str, path: str = str(PACKAGE)) -> subprocess.CompletedProcess[str]:
    """What Python says, started there."""
    env = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("words", [("-c", LOOK), ("script.py",)], ids=["command", "script"])
def test_the_package_is_imported(above: Path, words: tuple[str, ...]) -> None:
    done = started(above, *words)
    assert done.returncode == 0, done.stderr
    assert "28 steps" in done.stdout
    assert str(PACKAGE / "magpolicy" / "__init__.py") in done.stdout


def test_as_a_command(above: Path) -> None:
    done = started(above, "-m", "magpolicy", "--version")
    assert magpolicy.__version__ in done.stdout, done.stderr


def test_not_installed_says_what_to_do(above: Path) -> None:
    done = started(above, "-S", "-c", "import magpolicy", path="")
    assert "magpolicy is not installed" in done.stderr
    assert f'-m pip install "{above / "magpolicy"}"' in done.stderr
