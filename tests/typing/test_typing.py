"""What users write against the public names passes pyright, strict, and mistakes in it are found.

mypy checks the same files with the project's own code, as ``make lint``.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(HERE.glob("uses_*.py"))
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the torch extra is not installed")


def checked(*command):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "adapters")])
    # With --verifytypes pyright takes the first Python on PATH, whatever --pythonpath says.
    first = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "MYPYPATH": path, "PYTHONPATH": path, "PATH": first}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


@needs_torch
def test_pyright_accepts_what_users_write():
    pytest.importorskip("basedpyright", reason="the dev extra is not installed")
    assert json.loads((HERE / "pyrightconfig.json").read_text())["include"] == [file.name for file in FILES]
    code, output = checked("basedpyright", "-p", HERE, "--pythonpath", sys.executable)
    assert code == 0, output
    assert "0 errors, 0 warnings" in output


@pytest.mark.parametrize("package", ["magpolicy", "magpolicy_metrics"])
def test_every_public_name_has_a_type_that_no_checker_has_to_infer(package):
    pytest.importorskip("basedpyright", reason="the dev extra is not installed")
    code, output = checked("basedpyright", "--verifytypes", package, "--ignoreexternal", "--pythonpath", sys.executable)
    assert code == 0, output
    assert "Type completeness score: 100%" in output
