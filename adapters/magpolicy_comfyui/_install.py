"""Putting the node pack into a ComfyUI, and taking it out again: a folder in custom_nodes that loads the installed package."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from attrs import frozen

from magpolicy import ArgumentError

FOLDER = "magpolicy"
MARK = "Written by `magpolicy comfyui install`"
LOADER = f'''"""magpolicy's nodes, from the installed package. {MARK}; `magpolicy comfyui uninstall` removes it."""

import sys

try:
    from magpolicy_comfyui._pack import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
except ModuleNotFoundError as error:
    raise ImportError(
        f"magpolicy: {{error.name}} is not installed for the Python that runs ComfyUI; "
        f"run: \\"{{sys.executable}}\\" -m pip install \\"magpolicy[comfyui]\\""
    ) from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
'''
_ORIGIN = "comfyui-magcache"


@frozen
class Installation:
    """What a custom_nodes folder holds of the pack."""

    custom_nodes: Path
    """The folder itself."""
    loader: Path
    """Where the loader is, or would go."""
    installed: bool
    """The loader is there and is the one this version writes."""
    clones: tuple[Path, ...]
    """Clones of the repository beside it: each is the node pack too."""
    origin: tuple[Path, ...]
    """ComfyUI-MagCache, whose nodes have the same ids."""
    environment: Path | None
    """ComfyUI's own Python, where it is another than this one."""


def look(path: Path) -> Installation:
    """Find the custom_nodes folder of the ComfyUI at ``path``, and what is in it.

    Args:
        path: ComfyUI's folder, its base directory, the folder of a portable build, or custom_nodes itself.

    Raises:
        ArgumentError: there is no custom_nodes folder.
    """
    candidates = (path / "custom_nodes", path / "ComfyUI" / "custom_nodes", path)
    found = next((c for c in candidates if c.name == "custom_nodes" and c.is_dir()), None)
    if found is None:
        what = "holds no custom_nodes folder" if path.is_dir() else "is no folder"
        raise ArgumentError(f"path={str(path)!r} {what}; give ComfyUI's own folder, the one with main.py")
    folder = found.resolve()
    beside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.endswith(".disabled"))
    loader = folder / FOLDER
    return Installation(
        custom_nodes=folder,
        loader=loader,
        installed=_text(loader / "__init__.py") == LOADER,
        clones=tuple(entry for entry in beside if (entry / "adapters" / "magpolicy_comfyui").is_dir()),
        origin=origins(folder),
        environment=_other_python(folder.parent),
    )


def origins(custom_nodes: Path) -> tuple[Path, ...]:
    """Where ComfyUI-MagCache is in a custom_nodes folder, if it is there: its nodes have the same ids as ours."""
    entries = sorted(custom_nodes.iterdir()) if custom_nodes.is_dir() else []
    return tuple(entry for entry in entries if entry.name.lower() == _ORIGIN and entry.is_dir())


def install(path: Path) -> tuple[Installation, bool]:
    """Write the loader; whether something changed.

    Raises:
        ArgumentError: no custom_nodes folder, a clone is there already, or a folder of that name is somebody else's.
    """
    there = look(path)
    if there.clones:
        raise ArgumentError(
            f"path={str(path)!r} has the node pack already, as a clone in {there.clones[0]}; keep that, or remove it first"
        )
    if there.loader.exists() and not _ours(there.loader):
        raise ArgumentError(f"path={str(path)!r}: {there.loader} exists and is not of magpolicy; move it away first")
    if there.installed:
        return there, False
    there.loader.mkdir(exist_ok=True)
    (there.loader / "__init__.py").write_text(LOADER, encoding="utf-8")
    return look(path), True


def uninstall(path: Path) -> tuple[Installation, bool]:
    """Remove the loader and all that Python made of it; whether something changed.

    Raises:
        ArgumentError: no custom_nodes folder, or a folder of that name is somebody else's.
    """
    there = look(path)
    if not there.loader.exists() or there.loader in there.clones:
        return there, False
    if not _ours(there.loader):
        raise ArgumentError(f"path={str(path)!r}: {there.loader} is not of magpolicy; nothing was removed")
    strangers = sorted(entry.name for entry in there.loader.iterdir() if entry.name not in ("__init__.py", "__pycache__"))
    if strangers:
        raise ArgumentError(
            f"path={str(path)!r}: {there.loader} also holds {', '.join(strangers)}; move that away first, nothing was removed"
        )
    shutil.rmtree(there.loader)
    return look(path), True


def _ours(loader: Path) -> bool:
    """Whether a loader of ours is in there, of whatever version; an empty folder is free to take."""
    if loader.is_symlink() or not loader.is_dir():
        return False
    return MARK in _text(loader / "__init__.py") or not any(loader.iterdir())


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _other_python(comfyui: Path) -> Path | None:
    """The environment that comes with this ComfyUI, if this process runs in another one."""
    for name in ("venv", ".venv", "../python_embeded", "../python_embedded"):
        prefix = (comfyui / name).resolve()
        executables = (prefix / "bin" / "python", prefix / "Scripts" / "python.exe", prefix / "python.exe")
        python = next((e for e in executables if e.exists()), None)
        if python is not None and prefix != Path(sys.prefix).resolve():
            return python
    return None
