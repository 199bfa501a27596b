"""Installing the node pack and taking it out, interrupted anywhere, and where something else is in the way.

Python tells of each file operation before it is done (``sys.addaudithook``); what is raised there, the operation raises. So the
points of interruption are those of the code as it is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define

import magpolicy
from magpolicy_comfyui import _install

_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.symlink", "os.chmod")


@define
class _Watch:
    """Raises at one file operation under a folder, or from there on: as a lost process, which does not tidy up either."""

    folder: str = ""
    left: int | None = None
    raises: Callable[[], BaseException] = KeyboardInterrupt
    for_good: bool = True
    met: int = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder or event not in _OPERATIONS or not any(self._inside(value) for value in args):
            return
        self.met += 1
        if self.left is not None and (self.met > self.left if self.for_good else self.met == self.left + 1):
            raise self.raises()

    def _inside(self, value: Any) -> bool:
        return isinstance(value, str | os.PathLike) and str(os.fspath(value)).startswith(self.folder)


_watch = _Watch()
_hooked: list[bool] = []


@contextmanager
def watched(folder: Path, left: int | None = None, **how: Any) -> Iterator[_Watch]:
    """Count the file operations under ``folder``; with ``left``, only so many are done."""
    if not _hooked:  # such a hook stays for good
        sys.addaudithook(_watch)
        _hooked.append(True)
    _watch.__init__(str(folder.resolve()), left, **how)  # type: ignore[misc]
    try:
        yield _watch
    finally:
        _watch.folder = ""


def _denied() -> OSError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WAYS: dict[str, dict[str, Any]] = {
    "Ctrl-C": {"raises": KeyboardInterrupt, "for_good": False},
    "killed": {"raises": KeyboardInterrupt, "for_good": True},
    "no permission": {"raises": _denied, "for_good": True},
    "disk full": {"raises": _full, "for_good": False},
}
STARTS: dict[str, Callable[[Path], None]] = {
    "absent": lambda loader: None,
    "installed": lambda loader: _made(loader, _install.LOADER),
    "imported": lambda loader: (_made(loader, _install.LOADER), _cached(loader))[0],
    "another version": lambda loader: (_made(loader, f'"""{_install.MARK}"""\n'), _cached(loader))[0],
    "empty": lambda loader: loader.mkdir(),
    "only a cache": lambda loader: (loader.mkdir(), _cached(loader))[0],
    **{
        f"{name} of {length}": lambda loader, name=name, length=length: _made(loader, _install.LOADER[:length], name)  # type: ignore[misc]
        for name in ("__init__.py", "__init__.py.part")
        for length in (0, 5, 300)
    },
}


def _made(loader: Path, text: str, name: str = "__init__.py") -> None:
    loader.mkdir()
    (loader / name).write_text(text, encoding="utf-8")


def _cached(loader: Path) -> None:
    (loader / "__pycache__").mkdir()
    (loader / "__pycache__" / "__init__.cpython-312.pyc").write_bytes(b"made by Python")


def host(folder: Path, start: str = "absent") -> Path:
    (folder / "custom_nodes" / "other").mkdir(parents=True)
    (folder / "custom_nodes" / "other" / "__init__.py").write_text("theirs")
    STARTS[start](folder / "custom_nodes" / "magpolicy")
    return folder


def is_one_or_the_other(base: Path) -> None:
    """Installed, or there is nothing that ComfyUI would load; and the next call of either ends as it should."""
    there = _install.look(base)
    init = there.loader / "__init__.py"
    if there.installed:
        assert init.read_text(encoding="utf-8") == _install.LOADER
    else:
        loadable = init.read_text(encoding="utf-8") if init.exists() else ""
        assert not loadable or there.state in ("another version", "unfinished")
        assert bool(there.remark) == (there.state != "absent")
        assert not there.remark or "`magpolicy comfyui install`" in there.remark
    assert (there.custom_nodes / "other" / "__init__.py").read_text() == "theirs"


def points(folder: Path, act: Callable[[Path], Any], start: str) -> int:
    base = host(folder / "counted", start)
    with watched(base) as watch:
        act(base)
    return watch.met


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("act", [_install.install, _install.uninstall, _install.look], ids=lambda act: act.__name__)
@pytest.mark.parametrize("start", STARTS)
def test_an_interruption_anywhere_leaves_it_installed_or_not(tmp_path: Path, start: str, act: Any, way: str) -> None:
    for left in range(points(tmp_path, act, start)):
        for then in (_install.install, _install.uninstall):
            base = host(tmp_path / f"{left} {then.__name__}", start)
            before = _install.look(base).state
            said = ""
            try:
                with watched(base, left, **WAYS[way]) as watch:
                    act(base)
                assert WAYS[way]["raises"] is not KeyboardInterrupt  # making a folder that is there may be refused, too
            except KeyboardInterrupt:
                pass
            except magpolicy.ArgumentError as error:
                said = str(error)
            assert not said or (str(base) in said and "see to it that you may" in said)
            assert watch.met > left
            is_one_or_the_other(base)
            if act is _install.look:
                assert _install.look(base).state == before
            then(base)
            there = _install.look(base)
            assert there.state == ("installed" if then is _install.install else "absent")
            assert there.loader.exists() == (then is _install.install)
            assert not (there.loader / "__init__.py.part").exists()
            assert sorted(entry.name for entry in there.custom_nodes.iterdir() if entry != there.loader) == ["other"]


def test_every_step_is_watched(tmp_path: Path) -> None:
    assert points(tmp_path / "one", _install.install, "absent") >= 4  # read, mkdir, open, rename
    assert points(tmp_path / "two", _install.uninstall, "imported") >= 5


# Something else in the way


def _linked(loader: Path, target: Path, *, to_file: bool) -> None:
    if to_file:
        loader.mkdir()
        (loader / "__init__.py").symlink_to(target)
    else:
        loader.symlink_to(target)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("act", [_install.install, _install.uninstall], ids=lambda act: act.__name__)
@pytest.mark.parametrize("dangling", [False, True], ids=["link", "dangling link"])
@pytest.mark.parametrize("of", ["folder", "__init__.py", "__pycache__", "to a loader of another version"])
def test_what_a_link_leads_to_is_left_alone(tmp_path: Path, of: str, dangling: bool, act: Any) -> None:
    base = host(tmp_path / "ComfyUI")
    loader, target = base / "custom_nodes" / "magpolicy", tmp_path / "elsewhere"
    text = f'"""{_install.MARK} long ago"""' if of.startswith("to a loader") else "precious"
    if of in ("folder", "__pycache__"):
        if not dangling:
            target.mkdir()
            (target / "__init__.py").write_text(text)
    elif not dangling:
        target.write_text(text)
    if of == "__pycache__":
        _made(loader, _install.LOADER)
        (loader / "__pycache__").symlink_to(target)
    else:
        _linked(loader, target, to_file=of != "folder")
    with pytest.raises(magpolicy.ArgumentError, match=r"is a link to .*elsewhere.*nothing was"):
        act(base)
    there = _install.look(base)
    assert there.state == "not ours"
    assert "move it away" in there.remark
    assert target.exists() != dangling
    if not dangling:
        kept = target / "__init__.py" if target.is_dir() else target
        assert kept.read_text() == text


@pytest.mark.parametrize("act", [_install.install, _install.uninstall], ids=lambda act: act.__name__)
def test_a_linked_part_of_an_interrupted_install_is_not_written_through(tmp_path: Path, act: Any) -> None:
    base = host(tmp_path / "ComfyUI", "empty")
    target = tmp_path / "elsewhere"
    target.write_text("precious")
    (base / "custom_nodes" / "magpolicy" / "__init__.py.part").symlink_to(target)
    act(base)
    assert target.read_text() == "precious"
    assert _install.look(base).state == ("installed" if act is _install.install else "absent")


def test_custom_nodes_may_be_a_link(tmp_path: Path) -> None:
    base = host(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "custom_nodes").symlink_to(base / "custom_nodes")
    assert _install.install(tmp_path / "linked")[1]
    assert _install.look(base).installed
    assert _install.uninstall(tmp_path / "linked")[1]


@pytest.mark.parametrize("what", ["a file", "a folder in place of the loader", "a folder of somebody", "an empty name beside"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, what: str) -> None:
    base = host(tmp_path / "ComfyUI")
    loader = base / "custom_nodes" / "magpolicy"
    if what == "a file":
        loader.write_text("mine")
    else:
        loader.mkdir()
    if what == "a folder in place of the loader":
        (loader / "__init__.py").mkdir()
    elif what == "a folder of somebody":
        (loader / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    elif what == "an empty name beside":
        (loader / "mine.py").touch()
    before = sorted(str(path) for path in base.rglob("*"))
    for act in (_install.install, _install.uninstall):
        with pytest.raises(magpolicy.ArgumentError, match="not of magpolicy"):
            act(base)
    assert sorted(str(path) for path in base.rglob("*")) == before
    assert _install.look(base).state == "not ours"
