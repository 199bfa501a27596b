"""Keeps pytest from taking the repository for a package: the ``__init__.py`` at its root is for ComfyUI alone.

This file stands here and not there, where it would be imported as part of that package, whose name is that of the folder the
repository was cloned into, such as ``magpolicy``.

And keeps tests from the user's folder: each has one of its own, so that none plans from what another one's runs taught.

And keeps the garbage collector from going through all that was imported and collected, again and again: with so many tests,
those that collect spent most of their time there.

And leaves out most cases of tests with the mark ``sampled``, which have many that are much alike: of each test the first runs
and one in six of the rest. Of tests with the mark ``slow``, which take long and start processes, one in three runs. Which
ones the commit decides, so that each runs with some commits. The head of a run names the draw; ``MAGPOLICY_DRAW=2`` repeats it,
and with ``MAGPOLICY_EVERY=1`` all run.

And gives each of several processes (pytest-xdist) one thread: together they have as many as there are cores.
"""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import tempfile
import zlib
from pathlib import Path

import hypothesis
import pytest

HOME = "MAGPOLICY_HOME"
EVERY, DRAW = "MAGPOLICY_EVERY", "MAGPOLICY_DRAW"
DRAWS = 6
MARKS = {"sampled": DRAWS, "slow": 3}  # one in so many runs; of a test with both, one in six cases
_folders = itertools.count()


class _PlainRoot:
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
    config.pluginmanager.register(_PlainRoot(), "magpolicy-plain-root")  # a folder's own conftest is not asked about it
    os.environ.setdefault(DRAW, str(_draw_of_this_commit()))  # for the other processes, too, which must draw the same
    folder = tempfile.TemporaryDirectory(prefix="magpolicy-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ[HOME] = folder.name  # not put back: processes that tests leave behind must not write elsewhere
    if not config.getoption("hypothesis_profile", None):
        hypothesis.settings.load_profile(_NO_CLOCK)


def pytest_report_header() -> str:
    return "sampled tests: " + ("all" if os.environ.get(EVERY) else f"draw {os.environ[DRAW]} of {DRAWS}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(EVERY):
        return
    draw, left_out, begun = int(os.environ[DRAW]), set(), set()
    for item in items:
        marks = [mark for mark in MARKS if item.get_closest_marker(mark)]
        if marks:
            test, _, case = item.nodeid.partition("[")
            always = marks == ["sampled"] and test not in begun
            # Tests over the same cases draw different ones, so that most cases are drawn by some test.
            if not always and (_number(test) + _number(case) + draw) % MARKS[marks[0]]:
                left_out.add(item)
            begun.add(test)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _draw_of_this_commit() -> int:
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # an unpacked sdist
        return 0
    return int(commit, 16) % DRAWS


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


_NO_CLOCK = "no clock"
"""On a busy machine nothing is too slow."""
hypothesis.settings.register_profile(_NO_CLOCK, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(Path(os.environ[HOME]) / str(next(_folders))))
