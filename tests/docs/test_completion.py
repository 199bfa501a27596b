"""The lines of the page that have a shell complete: in the shells that are here, they do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the cli extra is not installed")

PAGE = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^    (.*_MAGPOLICY_COMPLETE=(\w+)_source magpolicy.*?) +#", PAGE, re.MULTILINE)
LINES = {shell: line for line, shell in FOUND}
BASH = """
COMP_WORDS=(magpolicy simulate flux --sem) COMP_CWORD=3
_magpolicy_completion magpolicy
echo "${COMPREPLY[@]}"
"""
ASKED = {
    "bash": (["bash", "--norc", "-c"], "{}" + BASH, "--semantics"),
    "zsh": (["zsh", "-f", "-c"], "autoload -U compinit; compinit -u -D\n{}\necho $_comps[magpolicy]", "_magpolicy_completion"),
    "fish": (["fish", "--no-config", "-c"], "{}\ncomplete -C 'magpolicy simulate flux --sem'", "--semantics"),
}


def test_the_page_has_every_shell():
    assert set(LINES) == set(ASKED)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has a bash that is too old, and Windows none of these")
@pytest.mark.parametrize("shell", ASKED)
def test_the_shell_completes(shell, tmp_path):
    command, script, expected = ASKED[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "magpolicy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m magpolicy "$@"\n')
    program.chmod(0o755)
    here = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([*command, script.replace("{}", LINES[shell])], capture_output=True, text=True, env=here, timeout=60)
    assert expected in done.stdout, done.stderr
