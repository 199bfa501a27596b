"""Installs a wheel or a source distribution into a new environment, and uses it as a user would.

``python tools/fresh_install.py dist/magpolicy-0.1.0-py3-none-any.whl`` installs it with the pinned dependencies. With
``--borrow`` the dependencies are those of the environment that runs this, and nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHERE = """
import importlib.metadata, magpolicy, sys
assert magpolicy.__file__.startswith(sys.prefix), magpolicy.__file__
assert magpolicy.__version__ == importlib.metadata.version("magpolicy"), magpolicy.__version__
print(magpolicy.__version__, magpolicy.simulate("wan2.1-t2v-1.3b", steps=30))
assert {"torch", "diffusers", "comfyui"} <= {plugin.name for plugin in magpolicy.plugins()}, magpolicy.plugins()
"""
COMMANDS = (
    ("--version",),
    ("simulate", "flux", "--steps", "28"),
    ("plan", "wan2.1-t2v-1.3b", "--steps", "30", "--speedup", "2"),
    ("presets", "--family", "flux"),
    ("library", "list"),
    ("plugins",),
)


def try_installed(file: Path, folder: Path, *, extras: str = "cli", borrow: bool = False) -> str:
    """Install ``file`` into a new environment in ``folder``, and run the checks there; returns what they printed.

    Raises:
        subprocess.CalledProcessError: something failed; its ``output`` says what.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"MAGPOLICY_HOME": str(folder / "home"), "PYTHONIOENCODING": "utf-8"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
        return done.stdout

    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    if borrow:
        _lend_to(python)
        run(*pip, "--no-index", "--no-deps", "--no-build-isolation", str(file.resolve()))
    else:
        run(*pip, "-c", str(ROOT / "constraints.txt"), f"{file.resolve()}[{extras}]")
    printed = [run(python, "-c", WHERE)]
    return "".join(printed + [run(str(scripts / "magpolicy"), *command) for command in COMMANDS])


def _lend_to(python: str) -> None:
    """Put this environment's packages behind those of the new one."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(theirs) / "zz-borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install distributions into new environments, and try them.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--extras", default="cli", help="extras to install, separated by commas")
    parser.add_argument("--borrow", action="store_true", help="take the dependencies from this environment; fetch nothing")
    given = parser.parse_args()
    for file in given.files:
        with tempfile.TemporaryDirectory(prefix="magpolicy-install-") as folder:
            print(try_installed(file, Path(folder), extras=given.extras, borrow=given.borrow).splitlines()[0])
            print(f"{file.name} works as installed")


if __name__ == "__main__":
    main()
