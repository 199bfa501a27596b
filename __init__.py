"""The node pack, for a clone of this repository in ComfyUI's custom_nodes. ComfyUI imports this file; nothing else needs it.

Python finds it too, as ``magpolicy``, where it is started in the folder above the clone. Then the package itself is imported.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_SOURCES = (str(_HERE / "src"), str(_HERE / "adapters"))
# As in requirements.txt, by the names they are imported by; torch comes with ComfyUI.
_NEEDED = ("numpy", "attrs", "pluggy", "lazy_loader", "platformdirs", "packaging", "cattrs", "safetensors", "torch")
_PIP = f'"{sys.executable}" -m pip install'


def _check_dependencies() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'magpolicy needs {", ".join(missing)}; run: {_PIP} -r "{_HERE / "requirements.txt"}"')


def _find_sources() -> None:
    """Make the packages importable: the clone's own, unless an installed magpolicy is as new. Never one of each."""
    spec = _package()
    where = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
    if where is not None and where.is_relative_to(_HERE):
        return  # installed from this clone
    if where is None:
        sys.path.extend(_SOURCES)
        return
    installed, cloned = _version(where.parent), _version(_HERE / "src" / "magpolicy")
    if installed >= cloned and importlib.util.find_spec("magpolicy_comfyui") is not None:
        logging.info("magpolicy: the installed %s is used (%s), not the clone's %s", installed, where.parent, cloned)
        return
    update = f'to update it, run: {_PIP} --upgrade "{_HERE}"'
    text = f"magpolicy {installed} is installed in {where.parent}, older than the clone's {cloned}"
    if any(name.split(".")[0].startswith("magpolicy") for name in sys.modules):
        raise ImportError(f"{text}, and another node pack has loaded it already; {update}")
    logging.warning("%s; the clone's is used here; %s", text, update)
    sys.path[:0] = _SOURCES


def _version(package: Path) -> Any:
    """The version of the magpolicy in that folder, in the order of versions (0.2.0rc1 is before 0.2.0)."""
    from packaging.version import Version  # late: whether it is there is checked first

    spec = importlib.util.spec_from_file_location("_version_of_magpolicy", package / "_version.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} has no _version.py; is it magpolicy?")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Version(module.__version__)


def _package() -> importlib.machinery.ModuleSpec | None:
    """The package on the path, past this file, which hides it where the folder above the clone is on the path as well."""
    here = Path(__file__).resolve()
    path = [entry for entry in sys.path if (Path(entry) / "magpolicy" / "__init__.py").resolve() != here]
    return importlib.machinery.PathFinder.find_spec("magpolicy", path)


def _hand_over() -> None:
    """Import the package in this file's place."""
    spec = _package()
    if spec is None or spec.loader is None:
        raise ImportError(f'magpolicy is not installed; {_HERE} is its repository; run: {_PIP} "{_HERE}"')
    sys.modules["magpolicy"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "magpolicy":  # not ComfyUI, which names packs by their path, but an import by name
    _hand_over()
elif "folder_paths" in sys.modules:  # ComfyUI; a test runner that walks through folders imports this file as well
    _check_dependencies()
    _find_sources()
    from magpolicy_comfyui._pack import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
