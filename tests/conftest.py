"""Keeps pytest from taking the repository for a package: the ``__init__.py`` at its root is for ComfyUI alone.

This file stands here and not there, where it would be imported as part of that package, whose name is that of the folder the
repository was cloned into, such as ``magpolicy``.

And keeps tests from the user's folder: each has one of its own, so that none plans from what another one's runs taught.

And keeps the garbage collector from going through all that was imported and collected, again and again: with so many tests,
those that collect spent most of their time there.

And leaves out most cases of tests with the mark ``sampled``, which have many that are slow and much alike; with
``MAGPOLICY_EVERY=1`` all run.

And gives each of several processes (pytest-xdist) one thread: together they have as many as there are cores.
"""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
import zlib
from pathlib import Path

import hypothesis
import pytest

HOME = "MAGPOLICY_HOME"
_folders = itertools.count()


class _PlainRoot:
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parents[1] else None


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
    config.pluginmanager.register(_PlainRoot(), "magpolicy-plain-root")  # a folder's own conftest is not asked about it
    folder = tempfile.TemporaryDirectory(prefix="magpolicy-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ[HOME] = folder.name  # not put back: processes that tests leave behind must not write elsewhere
    if not config.getoption("hypothesis_profile", None):
        hypothesis.settings.load_profile(_NO_CLOCK)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("MAGPOLICY_EVERY"):
        return
    left_out, begun = set(), set()
    for item in items:
        if item.get_closest_marker("sampled"):
            test, _, case = item.nodeid.partition("[")
            # Of three tests over the same cases each is likely to draw another third of them; always the same.
            drawn = (_number(test) + _number(case)) % 3 == 0
            if test in begun and not drawn:
                left_out.add(item)
            begun.add(test)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


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
