"""Putting the node pack into a ComfyUI, and taking it out again: a folder in custom_nodes that loads the installed package.

Both may be interrupted between any two of their steps, by a user, a full disk or a lost connection. The loader is written
beside its name and renamed, and it is the first to be removed: so it is there whole, or not at all. What else such an
interruption leaves is known by its names, and the next call of either goes on from there. No link is followed to be written to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

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
State = Literal["absent", "installed", "another version", "unfinished", "not ours"]
_ORIGIN = "comfyui-magcache"
_INIT, _PART, _CACHE = "__init__.py", "__init__.py.part", "__pycache__"


@frozen
class Installation:
    """What a custom_nodes folder holds of the pack."""

    custom_nodes: Path
    """The folder itself."""
    loader: Path
    """Where the loader is, or would go."""
    state: State
    """Of the loader. ``"unfinished"``: an installing or uninstalling was interrupted, and ComfyUI finds nothing to load."""
    clones: tuple[Path, ...]
    """Clones of the repository beside it: each is the node pack too."""
    origin: tuple[Path, ...]
    """ComfyUI-MagCache, whose nodes have the same ids."""
    environment: Path | None
    """ComfyUI's own Python, where it is another than this one."""
    problem: str = ""
    """Why the loader's place is not ours."""

    @property
    def installed(self) -> bool:
        """The loader is there and is the one this version writes."""
        return self.state == "installed"

    @property
    def remark(self) -> str:
        """What to do about the loader; empty if there is nothing."""
        if self.state == "unfinished":
            return (
                f"An install or uninstall was interrupted: {self.loader} loads nothing. `magpolicy comfyui install` finishes "
                "it, `magpolicy comfyui uninstall` removes the folder."
            )
        if self.state == "another version":
            return f"The loader in {self.loader} is of another version; `magpolicy comfyui install` renews it."
        return f"{self.loader} {self.problem}; move it away to install there." if self.state == "not ours" else ""


def look(path: Path) -> Installation:
    """Find the custom_nodes folder of the ComfyUI at ``path``, and what is in it.

    Args:
        path: ComfyUI's folder, its base directory, the folder of a portable build, or custom_nodes itself.

    Raises:
        ArgumentError: there is no custom_nodes folder, or it cannot be read.
    """
    with _told(path, "cannot be read"):
        candidates = (path / "custom_nodes", path / "ComfyUI" / "custom_nodes", path)
        found = next((c for c in candidates if c.name == "custom_nodes" and c.is_dir()), None)
        if found is None:
            what = "holds no custom_nodes folder" if path.is_dir() else "is no folder"
            raise ArgumentError(f"path={str(path)!r} {what}; give ComfyUI's own folder, the one with main.py")
        folder = found.resolve()
        beside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.endswith(".disabled"))
        clones = tuple(entry for entry in beside if (entry / "adapters" / "magpolicy_comfyui").is_dir())
        loader = folder / FOLDER
        problem = "" if loader in clones else _problem(loader)
        state: State = "absent" if loader in clones else _state(loader)
        return Installation(
            custom_nodes=folder,
            loader=loader,
            state="not ours" if problem else state,
            clones=clones,
            origin=origins(folder),
            environment=_other_python(folder.parent),
            problem=problem,
        )


def origins(custom_nodes: Path) -> tuple[Path, ...]:
    """Where ComfyUI-MagCache is in a custom_nodes folder, if it is there: its nodes have the same ids as ours."""
    entries = sorted(custom_nodes.iterdir()) if custom_nodes.is_dir() else []
    return tuple(entry for entry in entries if entry.name.lower() == _ORIGIN and entry.is_dir())


def install(path: Path) -> tuple[Installation, bool]:
    """Write the loader; whether something changed.

    Raises:
        ArgumentError: no custom_nodes folder, a clone is there already, a folder of that name is somebody else's, or nothing
            can be written there.
    """
    there = look(path)
    if there.clones:
        raise ArgumentError(
            f"path={str(path)!r} has the node pack already, as a clone in {there.clones[0]}; keep that, or remove it first"
        )
    if there.problem:
        raise ArgumentError(f"path={str(path)!r}: {there.loader} {there.problem}; move it away first, nothing was written")
    if there.installed:
        return there, False
    with _told(path, "cannot be written", "`magpolicy comfyui install`"):
        there.loader.mkdir(exist_ok=True)
        part = there.loader / _PART
        part.unlink(missing_ok=True)
        with part.open("x", encoding="utf-8") as file:
            file.write(LOADER)
        os.replace(part, there.loader / _INIT)
    return look(path), True


def uninstall(path: Path) -> tuple[Installation, bool]:
    """Remove the loader and all that Python made of it; whether something changed.

    Raises:
        ArgumentError: no custom_nodes folder, a folder of that name is somebody else's, or nothing can be removed there.
    """
    there = look(path)
    if there.state == "absent" or there.loader in there.clones:
        return there, False
    if there.problem:
        raise ArgumentError(f"path={str(path)!r}: {there.loader} {there.problem}; nothing was removed")
    with _told(path, "cannot be removed", "`magpolicy comfyui uninstall`"):
        strangers = sorted(entry.name for entry in there.loader.iterdir() if entry.name not in (_INIT, _PART, _CACHE))
        if strangers:
            others = ", ".join(strangers)
            raise ArgumentError(
                f"path={str(path)!r}: {there.loader} also holds {others}; move that away first, nothing was removed"
            )
        for name in (_INIT, _PART):  # what ComfyUI would load goes first
            (there.loader / name).unlink(missing_ok=True)
        cache = there.loader / _CACHE
        if cache.is_dir():
            for entry in cache.iterdir():
                entry.unlink()
            cache.rmdir()
        there.loader.rmdir()
    return look(path), True


def _state(loader: Path) -> State:
    if not loader.is_dir():
        return "absent"
    text = _text(loader / _INIT)
    if text == LOADER:
        return "installed"
    return "another version" if MARK in text else "unfinished"


def _problem(loader: Path) -> str:
    """Why the place of the loader cannot be taken: something else is there. Empty if it can."""
    for place in (loader, loader / _INIT, loader / _CACHE):
        if place.is_symlink() and _text(place) != LOADER:
            return f"{'' if place == loader else f'has a {place.name} that '}is a link to {os.readlink(place)}"
    if not os.path.lexists(loader):
        return ""
    if not loader.is_dir():
        return "is a file that is not of magpolicy"
    text = _text(loader / _INIT)
    if MARK in text:
        return ""
    # An empty folder is free to take, and so is what an interruption leaves: less than the loader, or only names of ours.
    left = {entry.name for entry in loader.iterdir()}
    begun = not os.path.lexists(loader / _INIT) or ((loader / _INIT).is_file() and LOADER.startswith(text))
    return "" if begun and left <= {_INIT, _PART, _CACHE} else "exists and is not of magpolicy"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


@contextmanager
def _told(path: Path, what: str, command: str = "") -> Iterator[None]:
    """What the system refuses, as a message that says what to do."""
    try:
        yield
    except OSError as error:
        again = f", then run {command} again" if command else ""
        why = error.strerror or error
        mend = (
            f"see to it that you may write there and the disk has room{again}" if command else "see to it that you may read it"
        )
        raise ArgumentError(f"path={str(path)!r}: {error.filename or path} {what}: {why}; {mend}") from error


def _other_python(comfyui: Path) -> Path | None:
    """The environment that comes with this ComfyUI, if this process runs in another one."""
    for name in ("venv", ".venv", "../python_embeded", "../python_embedded"):
        prefix = (comfyui / name).resolve()
        executables = (prefix / "bin" / "python", prefix / "Scripts" / "python.exe", prefix / "python.exe")
        python = next((e for e in executables if e.exists()), None)
        if python is not None and prefix != Path(sys.prefix).resolve():
            return python
    return None
