"""Writing the user's files: all or nothing, where a link points, with the permissions it had, and never over another's."""

import os
import stat
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpolicy
from magpolicy import Calibration, PresetError
from magpolicy.adapter import keep_in, presets_in, resolve
from magpolicy.catalog._exchange import take_in
from magpolicy.files import _writing
from magpolicy.files._writing import writable, write_whole

PLAN = magpolicy.plan([1.0, 0.9, 1.1, 0.95], steps=4, speedup=1.5)
WRITERS = {
    "calibration": lambda file: made("x").save(file),
    "preset": lambda file: magpolicy.save_preset(magpolicy.preset("flux"), file),
    "schedule": PLAN.save,
}


def made(name):
    path = np.cumsum(np.random.default_rng(0).normal(size=(3, 2, 4)), axis=0)
    return Calibration.from_residuals({"cond": path}, name=name)


@pytest.fixture(autouse=True)
def no_umask(monkeypatch):
    """The mask is the process's: to look at it is to change it, for every thread."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the process's umask was changed"))


@pytest.mark.parametrize("writes", WRITERS.values(), ids=WRITERS)
def test_the_file_that_a_link_points_to_is_written_and_keeps_its_permissions(writes, tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to(target.name)
    writes(link)
    assert link.is_symlink()
    assert target.read_text().startswith("{")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.json", "target.json"]


@pytest.mark.parametrize("writes", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_fault_at_any_point_leaves_what_was_there(writes, fault, kind, tmp_path, monkeypatch):
    file = tmp_path / "mine.json"
    file.write_text("before")

    def fails(*_, **__):
        raise kind

    with monkeypatch.context() as patched:
        if fault == "write":
            patched.setattr(_writing, "open", fails, raising=False)
        else:
            patched.setattr(os, fault, fails)
        with pytest.raises(PresetError if isinstance(kind, OSError) else KeyboardInterrupt):
            writes(file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    writes(file)
    assert file.read_text() != "before"


@pytest.mark.parametrize("writes", WRITERS.values(), ids=WRITERS)
def test_what_is_no_regular_file_is_not_replaced(writes, tmp_path):
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(PresetError, match="it is no regular file, but a folder"):
        writes(folder)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(PresetError, match="pipe or device"):
            writes(tmp_path / "pipe.json")
    loop = tmp_path / "loop.json"
    loop.symlink_to("loop.json")
    with pytest.raises(PresetError, match="cannot be written"):
        writes(loop)


def test_what_killed_writers_left_is_swept(tmp_path):
    old, young, strange = (tmp_path / f".x.json.{name}{_writing._PART}" for name in ("old", "young", "strange"))
    others = tmp_path / ".y.part"
    for file in (old, young, others):
        file.write_text("half")
    strange.mkdir()
    for file in (old, others, strange):
        os.utime(file, (time.time() - 4000,) * 2)
    write_whole(tmp_path / "z.json", b"1")
    assert not old.exists()
    assert young.exists()  # somebody may be at it
    assert others.exists()  # not ours
    assert strange.exists()


def test_a_new_file_never_takes_the_place_of_another(tmp_path):
    write_whole(tmp_path / "a", b"1", new=True)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"2", new=True)
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_writers_at_once_lose_nothing(tmp_path):
    """Nor do two that write under one name leave two files, of which one is found and removed while a third looks."""
    names = [f"a{between}b" for between in ' !"#$%&/()=?-;:,<>|~'] + ["a b", "A B"]
    at_once([lambda name=name: keep_in(tmp_path, made(name)) for name in names])
    assert sorted(preset.name for preset in presets_in(tmp_path)) == sorted(set(names))
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.filterwarnings("default::magpolicy.PresetWarning")  # one that looks may meet a file that is removed just then
def test_writers_of_one_name_and_several_endings_leave_one(tmp_path):
    pytest.importorskip("safetensors", reason="the files extra is not installed")
    for _ in range(10):
        at_once([lambda ending=ending: keep_in(tmp_path, made("a"), ending=ending) for ending in (".json", ".safetensors") * 3])
        assert [preset.name for preset in presets_in(tmp_path)]
        keep_in(tmp_path, made("a"))
        assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_presets_taken_in_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGPOLICY_HOME", str(tmp_path / "home"))
    magpolicy.save_preset(magpolicy.preset("flux"), tmp_path / "flux.json")
    names = [f"a{between}b" for between in " !#$%&()=;,~"]
    at_once([lambda name=name: take_in(tmp_path / "flux.json", name, replace=True) for name in names])
    assert sorted(preset.name for preset in presets_in(tmp_path / "home")) == sorted(names)


def at_once(writers, times=3):
    """Each in a thread of its own, so many times; none fails."""
    problems = []

    def writes(writer):
        try:
            for _ in range(times):
                writer()
        except BaseException as error:
            problems.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=writes, args=(writer,)) for writer in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not problems


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere/x.json", "there is no folder"),
        ("a\0b.json", "null"),
        ("a\ud800b.json", "surrogate"),
        ("x" * 251 + ".json", "too long"),
        ("folder", "but a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_said_before_the_work(name, why, tmp_path):
    (tmp_path / "folder").mkdir()
    file = tmp_path / name
    with pytest.raises(PresetError, match=rf"(?i)^output=.*{why}"):
        writable(file, "output")
    for fine in ("fine.json", "y" * 250 + ".json", "漢" * 83 + ".json"):
        assert writable(tmp_path / fine) is None
        write_whole(tmp_path / fine, b"1")  # and so it can
        (tmp_path / fine).unlink()
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


@settings(max_examples=200)
@given(text=st.text(), more=st.sampled_from(["\x1b[2J", "\x07", "\x9b31m", "\0", "\u202e", "\ud800"]))
def test_no_message_acts_on_a_terminal(text, more):
    said = str(PresetError(f"{text}{more}{text}"))
    assert all(c.isprintable() or c in "\n\t" for c in said)
    assert str(PresetError("schön: █··█\n  x")) == "schön: █··█\n  x"


def test_a_source_in_a_file_is_read_once(tmp_path, monkeypatch):
    PLAN.save(tmp_path / "best.json")
    made("x").save(tmp_path / "calibration.json")
    opened, really = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: [opened.append(path), really(path, *rest, **more)][1])
    for name in ("best.json", "calibration.json"):
        opened.clear()
        resolve(tmp_path / name, **({} if name == "best.json" else {"speedup": 2.0}))
        assert opened == [tmp_path / name]


def test_a_schedules_file_is_taken_wherever_a_schedule_is(tmp_path):
    file = tmp_path / "best.json"
    PLAN.save(file)
    assert magpolicy.load_schedule(file) == PLAN
    assert magpolicy.load_schedule(file).coefficients == PLAN.coefficients
    assert magpolicy.simulate(str(file)) == magpolicy.simulate(Path(file)) == PLAN
    with pytest.raises(PresetError, match=r"best\.json holds a schedule, which is for one run; try schedule="):
        magpolicy.preset(file)
    made("x").save(tmp_path / "calibration.json")
    with pytest.raises(magpolicy.ArgumentError, match=r"holds no schedule; give a file that Schedule\.save"):
        magpolicy.load_schedule(tmp_path / "calibration.json")
    (tmp_path / "two.json").write_text("[{}, {}]")
    with pytest.raises(magpolicy.ArgumentError, match="holds 2 schedules, one a run"):
        magpolicy.load_schedule(tmp_path / "two.json")
    with pytest.raises(PresetError, match=r"must end in \.json; try best\.json"):
        PLAN.save(tmp_path / "best.txt")
